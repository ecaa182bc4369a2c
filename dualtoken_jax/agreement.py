"""What the processes of a run do alike, because the first one says so or any of them does."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_ROOM = 8192  # bytes of an answer: all processes must know its size beforehand
_WORDS = 1000  # characters of an error that the others are told


def by_first(act: Callable[[], Any], error: type[Exception]) -> Any:
    """What `act` returns on process 0, in JSON's types and a few words long, on every process; the others wait for it.

    Where it raises there, it raises everywhere, on the others `error` with the same words: nobody waits for a process
    that has ended.
    """
    if jax.process_count() == 1:
        return act()
    answer, raised = None, None
    if jax.process_index() == 0:
        try:
            answer = act()
        except Exception as caught:  # noqa: BLE001 (of whatever kind, the others wait)
            raised = caught
    words = None if raised is None else str(raised)[:_WORDS]
    told = _unpacked(multihost_utils.broadcast_one_to_all(_packed({"answer": answer, "error": words})))
    if raised is not None:
        raise raised
    if told["error"] is not None:
        raise error(f"{told['error']} (found by process 0)")
    return told["answer"]


def anywhere(here: bool) -> bool:
    """Whether it is so on any process; all must ask at the same moment."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).any())


def _packed(told: dict) -> np.ndarray:
    data = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    if len(data) > _ROOM:
        raise ValueError(f"an answer of {len(data)} bytes is too long to be told; there is room for {_ROOM}")
    return np.frombuffer(data.ljust(_ROOM), np.uint8)


def _unpacked(array: np.ndarray) -> dict:
    return json.loads(np.asarray(array).tobytes())
