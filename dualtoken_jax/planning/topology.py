"""The devices that a plan is for: a TPU slice that need not be here, or this machine's own."""

import importlib.metadata
import importlib.util
import os
import re

LOCAL = "local"
_EXAMPLES = "v5e:2x4, v5e:16x16, v6e:16x16, v5p:4x4x4"


class TopologyError(ValueError):
    """Devices that cannot be had; the message names the remedy."""


def find_devices(topology: str) -> list:
    """Devices of a slice such as "v5e:16x16", to compile for; this machine's for "local". Raises TopologyError."""
    import jax  # reads the environment, which prepare_environment sets

    if topology == LOCAL:
        return jax.devices()
    if not re.fullmatch(r"\w+:\d+(x\d+){1,2}", topology):
        raise TopologyError(
            f"--topology={topology!r} must be {LOCAL!r}, or a kind and chips along each axis: {_EXAMPLES}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"compiling for {topology} needs the TPU compiler, which is not installed: pip install "
            f"'{libtpu_requirement()}' (700 MB; no TPU is needed)"
        )
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise TopologyError(
            f"--topology={topology!r} is not known to libtpu ({reason}); such are {_EXAMPLES}"
        ) from None


def prepare_environment(topology: str) -> None:
    """To be called before JAX wakes: nothing may look for a TPU that is not there."""
    if topology != LOCAL:
        os.environ["JAX_PLATFORMS"] = "cpu"
        # Nobody is asked who this machine is, no second process is refused, and libtpu does not miss what it has no
        # need of here: the slice is the one that is asked for, whatever these say.
        for name, value in (
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
            ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ):
            os.environ.setdefault(name, value)


def libtpu_requirement() -> str:
    """The libtpu that the installed jax names, such as "libtpu==0.0.42.*"."""
    named = [
        text.split(";")[0].strip() for text in importlib.metadata.requires("jax") or [] if text.startswith("libtpu")
    ]
    return named[0] if named else "libtpu"
