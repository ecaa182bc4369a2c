"""Several processes take turns at the same question, so that whatever else the machine does falls on all alike."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Runner:
    """One process, what it said when it was ready, and the seconds of its calls."""

    name: str
    process: subprocess.Popen
    figures: dict
    seconds: list[float]

    @classmethod
    def start(cls, name: str, specification: dict) -> "Runner":
        """Starts the process and waits until it is ready; raises RuntimeError with its last words if it never is."""
        threads = str(specification["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            text=True,
        )
        runner = cls(name, process, {}, [])
        runner.figures = runner._answer()
        runner.figures["start_to_first_call_seconds"] = runner.figures.pop("ready") - began
        return runner

    def calls(self, count: int) -> None:
        """Times so many calls; the others wait."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds += answer.pop("seconds")
        self.figures |= answer

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}; its messages stand above")
        return json.loads(line)

    def result(self, batch: int) -> dict:
        """Its row of the results."""
        median = statistics.median(self.seconds)
        spread = {"fastest_seconds": min(self.seconds), "calls": len(self.seconds)}
        return {"images_per_second": batch / median, "median_seconds": median} | spread | self.figures

    def stop(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def race(sides: dict[str, dict], batch: int, rounds: int, calls: int) -> dict[str, dict]:
    """Results by name of the sides, whose values are a worker's specifications; one that fails has an `error`."""
    runners, results = [], {}
    for name, specification in sides.items():
        try:
            runners.append(Runner.start(name, specification))
        except RuntimeError as error:
            results[name] = {"error": str(error)}
    for number in range(rounds):
        for runner in runners if number % 2 == 0 else runners[::-1]:  # who comes first takes turns too
            runner.calls(calls)
    for runner in runners:
        results[runner.name] = runner.result(batch)
        runner.stop()
    return results
