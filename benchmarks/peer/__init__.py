"""The same training step in PyTorch, as METHOD.md describes it: what ours is compared with, in numbers and in speed.

It reads a config's fields alone and imports nothing of JAX, so that a process that measures it runs PyTorch only.
"""
