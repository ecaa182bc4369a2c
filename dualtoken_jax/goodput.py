"""python -m dualtoken_jax.goodput WORKDIR: what every second of a run went to, over all its starts.

Goodput is the share of the time, from the first start to the last sign of life, that went into steps and evaluations
which were not lost to a failure.
"""

import argparse
import collections
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax

FILE = "goodput.jsonl"
USEFUL = ("step", "evaluate")
# In the order in which a start goes through them; `lost` was done again, `down` is between two starts.
KINDS = ("start", "restore", "compile", "data", "transfer", "step", "evaluate", "save", "lost", "down")
_BEHIND_A_STEP = ("data", "transfer")  # they cost nothing where the devices still work on the step before
_EVERY = 1.0  # seconds between two lines

_began = time.time()  # of the process, nearly: this module is imported before JAX wakes its devices


class Clock:
    """Adds up the seconds of one process by kind and appends them to WORKDIR/goodput.jsonl; the first process writes.

    What is inside no `spend` is a step.
    """

    def __init__(self, workdir: Path):
        global _began
        self._file = Path(workdir) / FILE if jax.process_index() == 0 else None
        self._attempt, self._began = time.time(), time.perf_counter()
        self._spent: collections.Counter[str] = collections.Counter(start=self._attempt - _began)
        self._kind, self._since, self._written, self._step = "start", self._began, self._began, None
        self._interval: collections.Counter[str] = collections.Counter()
        self._dispatched: jax.Array | None = None
        _began = self._attempt  # a second run of the same process starts here

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_) -> None:
        self._turn_to(self._kind)
        self._write()

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """The seconds inside are of this kind; of a step, if what runs beside it is not through by their end."""
        before = self._kind
        self._turn_to(kind)
        try:
            yield
        finally:
            if kind in _BEHIND_A_STEP and self._dispatched is not None and not self._dispatched.is_ready():
                self._kind = "step"
            self._turn_to(before if before != "start" else "step")

    def resumed(self, step: int) -> None:
        """This start goes on from that step: what an earlier one did beyond it was lost."""
        self._step = step
        self._turn_to(self._kind)
        self._write()

    def step(self, step: int, result: jax.Array) -> None:
        """That many steps are dispatched; `result` is the last one's, for which nobody waits here."""
        self._step, self._dispatched = step, result
        self._turn_to("step")
        if time.perf_counter() - self._written > _EVERY:
            self._write()

    def interval(self) -> dict[str, float]:
        """Seconds by kind since the last call."""
        self._turn_to(self._kind)
        spent, self._interval = dict(self._interval), collections.Counter()
        return spent

    def _turn_to(self, kind: str) -> None:
        now = time.perf_counter()
        self._spent[self._kind] += now - self._since
        self._interval[self._kind] += now - self._since
        self._kind, self._since = kind, now

    def _write(self) -> None:
        self._written = time.perf_counter()
        if self._file is None:
            return
        spent = {kind: round(seconds, 4) for kind, seconds in self._spent.items() if seconds > 0}
        line = {"attempt": self._attempt, "time": time.time(), "step": self._step, "spent": spent}
        self._spent.clear()
        with contextlib.suppress(OSError), self._file.open("a") as file:  # the run matters more than its diary
            file.write(json.dumps(line) + "\n")


def summarise(lines: list[dict]) -> dict[str, float]:
    """Seconds by kind, `total`, `goodput` (0 … 1) and the number of `starts`, from the lines of goodput.jsonl.

    Raises ValueError where there are none.
    """
    if not lines:
        raise ValueError("nothing is written there: the run has not begun")
    seconds: collections.Counter[str] = collections.Counter()
    attempts = _stretches(lines)
    begun = [attempt[0]["time"] - sum(attempt[0]["spent"].values()) for attempt in attempts]
    for number, attempt in enumerate(attempts):
        # Steps that a later start did once more were lost in this one.
        kept = min((_first_step(later) for later in attempts[number + 1 :]), default=None)
        for line in attempt:
            lost = kept is not None and (line["step"] or 0) > kept
            for kind, spent in line["spent"].items():
                seconds["lost" if lost and kind in (*USEFUL, "data", "transfer", "save") else kind] += spent
        if number + 1 < len(attempts):
            seconds["down"] += max(0.0, begun[number + 1] - attempt[-1]["time"])
    total = lines[-1]["time"] - begun[0]
    useful = sum(seconds[kind] for kind in USEFUL)
    found = {kind: seconds[kind] for kind in KINDS} | {"total": total}
    return found | {"goodput": useful / max(total, 1e-9), "starts": len({line["attempt"] for line in lines})}


def _stretches(lines: list[dict]) -> list[list[dict]]:
    """Lines between one start, or one going back to a checkpoint, and the next."""
    stretches: list[list[dict]] = []
    for line, before in zip(lines, [None, *lines[:-1]], strict=True):
        goes_on = before and line["attempt"] == before["attempt"] and (line["step"] or 0) >= (before["step"] or 0)
        if not goes_on:
            stretches.append([])
        stretches[-1].append(line)
    return stretches


def _first_step(attempt: list[dict]) -> float:
    """The step that a start resumed from; infinite where it died before its first one."""
    steps = [line["step"] for line in attempt if line["step"] is not None]
    return steps[0] if steps else float("inf")


def read(workdir: Path) -> list[dict]:
    """The lines of a workdir; one that a crash cut short is left out."""
    file, lines = Path(workdir) / FILE, []
    for text in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            lines += [line] if _is_line(line) else []
    return lines


def _is_line(line: object) -> bool:
    match line:
        case {"attempt": int() | float(), "time": int() | float(), "step": int() | None, "spent": dict(spent)}:
            return all(isinstance(seconds, int | float) for seconds in spent.values())
    return False


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m dualtoken_jax.goodput", description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="folder of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(arguments)
    try:
        found = summarise(read(flags.workdir))
    except ValueError as error:
        parser.exit(1, f"error: {flags.workdir / FILE}: {error}; give the folder of a run, such as runs/demo\n")
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    for kind in KINDS:
        print(f"  {kind:<9} {found[kind]:10.1f} s  {100 * found[kind] / max(found['total'], 1e-9):5.1f} %")
    print(f"  {'total':<9} {found['total']:10.1f} s")
    print(f"  {'goodput':<9} {100 * found['goodput']:10.1f} %  in {found['starts']} starts")


if __name__ == "__main__":
    main()
