"""Names of the leaves of a train state: the one place that knows what a path through nested dicts looks like."""


def names(path) -> list[str]:
    """Keys along a pytree path of nested dicts."""
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]


def is_stacked(path) -> bool:
    """Whether the leaf belongs to stacked layers, whose arrays carry a leading layer axis."""
    return "layers" in names(path)
