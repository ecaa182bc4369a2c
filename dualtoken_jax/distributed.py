"""Joins this process to the others of its run, where there are others."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead; JAX waits for 100


def join() -> None:
    """`jax.distributed.initialize`, unless this process is alone.

    JAX's own detection of the cluster fills in what is not given: on TPU pods (one slice or several), under SLURM's
    srun, under Open MPI and in the pods of an indexed Kubernetes job. Anywhere else the three variables
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it.
    """
    if expects_others(os.environ, _has_tpu()):
        number = lambda name: int(os.environ[name]) if name in os.environ else None  # noqa: E731
        jax.distributed.initialize(  # it reads the address by itself, but not the two numbers
            num_processes=number("JAX_NUM_PROCESSES"),
            process_id=number("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=HEARTBEAT,
        )


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
