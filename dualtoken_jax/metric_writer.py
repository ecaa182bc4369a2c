"""The only file that knows TensorBoard. Scalars also go to metrics.jsonl, which the report reads.

The method names are those of clu's MetricWriter. clu's own writers import TensorFlow (1.4 GB), tensorboardX is 87 kB.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from dualtoken_jax.data.storage import write_whole

log = logging.getLogger("dualtoken_jax")


class MetricWriter:
    """Writes below `workdir`; a run resumed at `first_step` drops what was logged after it, None drops nothing.

    All processes call it, and process 0 writes.
    """

    def __init__(self, workdir: Path, first_step: int | None = None):
        self._tensorboard = None
        if jax.process_index() > 0:
            return
        self._file = Path(workdir) / "metrics.jsonl"
        purge = None
        if first_step is not None:
            kept = [line for line in read_metrics(workdir) if line["step"] <= first_step]
            write_whole(str(self._file), "".join(json.dumps(line) + "\n" for line in kept).encode())
            purge = first_step + 1
        self._tensorboard = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=purge)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One value per name."""
        if self._tensorboard is None:
            return
        try:
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
        except OSError as error:  # storage that fails for a while must not end the training
            log.warning("the metrics of step %d are lost: %s", step, error)
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """One picture uint8 [H, W, 3] per name."""
        for name, image in self._mine(images):
            self._tensorboard.add_image(name, image, step, dataformats="HWC")

    def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """The distribution of the values of an array per name."""
        for name, values in self._mine(arrays):
            self._tensorboard.add_histogram(name, values, step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """One text per name."""
        for name, text in self._mine(texts):
            self._tensorboard.add_text(name, text, step)

    def flush(self) -> None:
        """Makes everything written so far visible."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and releases the files."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _mine(self, items: Mapping) -> Iterable:
        return items.items() if self._tensorboard is not None else ()


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """All logged scalars in order of steps; a line that a crash cut short is left out."""
    file = Path(workdir) / "metrics.jsonl"
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
