"""Joins this process to the others of its run, where there are others."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax

from dualtoken_jax.config import ConfigError

_SAY = (
    "JAX_COORDINATOR_ADDRESS is the host:port of process 0, JAX_NUM_PROCESSES how many there are, and JAX_PROCESS_ID, "
    "from 0 on, which one this is"
)
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead; JAX waits for 100


def join() -> None:
    """`jax.distributed.initialize`, unless this process is alone.

    JAX's own detection of the cluster fills in what is not given: on TPU pods (one slice or several), under SLURM's
    srun, under Open MPI and in the pods of an indexed Kubernetes job. Anywhere else the three variables
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it.

    Raises ConfigError where they are wrong, or where JAX has no devices.
    """
    if expects_others(os.environ, _has_tpu()):
        given = [_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        try:  # it reads the address by itself, but not the two numbers
            jax.distributed.initialize(None, *given, heartbeat_timeout_seconds=HEARTBEAT)
        except ValueError as error:
            raise ConfigError(f"this process cannot join the others of its run: {error} {_SAY}") from error
    try:
        jax.devices()
    except RuntimeError as error:
        raise ConfigError(f"{error}; JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', 'not set')}") from error


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}, which is no number. {_SAY}")
    return None if text is None else int(text)


def expects_others(environment: Mapping[str, str], has_tpu: bool) -> bool:
    """Whether this process was started as one of several, or may have been: a TPU VM does not say."""
    count = lambda name: int(environment.get(name, 1))  # noqa: E731
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    if has_tpu:  # a pod's hosts ask the metadata server who they are; GKE's know, and so does who must not be asked
        return "TPU_WORKER_HOSTNAMES" in environment or "TPU_SKIP_MDS_QUERY" not in environment
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return count("SLURM_NTASKS") > 1
    # Any pod knows its cluster's address, but only one of an indexed job has siblings.
    return count("OMPI_COMM_WORLD_SIZE") > 1 or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)


def _has_tpu() -> bool:
    """Whether a TPU's chips and its driver are here. Asking JAX would start it, and then it is too late to join."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or not importlib.util.find_spec("libtpu"):
        return False
    return any(any(Path("/dev").glob(name)) for name in ("accel*", "vfio/[0-9]*"))
