"""One side of a comparison in a process of its own: it makes ready, then times calls whenever it is asked to.

python -m benchmarks.worker SPECIFICATION, which is JSON; started by benchmarks.race. Each line of standard input is a
number of calls to time; each line of standard output is JSON: first the start's figures, then the seconds of each call.
"""

import json
import os
import resource
import sys
import time


def main(specification: dict) -> None:
    """Ready, then at call."""
    answers = os.fdopen(os.dup(1), "w")  # whatever libraries print goes to standard error
    os.dup2(2, 1)
    call, compile_seconds, device_bytes = _work(specification)
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    figures = {"compile_seconds": compile_seconds, "first_call_seconds": first, "ready": time.time()}
    print(json.dumps(figures), file=answers, flush=True)
    for line in sys.stdin:
        seconds = []
        call()  # while others had their turn, the system may have put this one's memory aside
        for _ in range(int(line)):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        peak = {"host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps({"seconds": seconds, "device_peak_bytes": device_bytes()} | peak), file=answers, flush=True)


def _work(specification: dict):
    question, config, batch = (specification[name] for name in ("question", "config", "batch"))
    if specification["side"] == "ours":
        from benchmarks import ours
        from dualtoken_jax.config import from_dict

        work = ours.work(question, from_dict(config), batch)
        return work.call, work.compile_seconds, ours.peak_device_bytes
    import torch

    from benchmarks import theirs
    from benchmarks.peer.form import Form

    torch.set_num_threads(specification["threads"])
    call, compile_seconds = theirs.work(question, config, batch, Form(**specification["form"]))
    return call, compile_seconds, theirs.peak_device_bytes


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
