"""DualToken in JAX. `load(workdir)` opens a trained tokenizer; training starts with `python -m dualtoken_jax.main`."""

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str):
    # Lazily, so that importing the package neither imports nor configures JAX.
    if name == "load":
        from dualtoken_jax.api import load

        return load
    raise AttributeError(f"module 'dualtoken_jax' has no attribute {name!r}")
