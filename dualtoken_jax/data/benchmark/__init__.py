"""How fast pictures come, and what a training step loses by waiting for them; see __main__.py."""
