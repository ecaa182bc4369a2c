"""One job per shard as an Apache Beam pipeline. Only this file imports Beam, which is not required."""

from collections.abc import Callable, Collection

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise ValueError("--runner needs Apache Beam: pip install apache-beam") from error


def run_pipeline(job: Callable[[int], None], numbers: Collection[int], options: list[str]) -> None:
    """Calls `job(number)` for each number, on the workers of Beam's runner, and waits for the end.

    Beam repeats what failed, and may do one thing twice: a job must not mind.

    Args:
      job: picklable; what it makes, it puts where all workers and the caller see it.
      options: Beam's command-line flags.
    """
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        shards = pipeline | "Shards" >> beam.Create(list(numbers), reshuffle=True)
        shards | "Write" >> beam.Map(job)
