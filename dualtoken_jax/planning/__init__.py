"""What `python -m dualtoken_jax.plan` finds out about a training step without running it."""
