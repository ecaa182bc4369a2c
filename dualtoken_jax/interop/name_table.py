"""Name tables: which PyTorch tensor is which leaf of our parameter trees, and in which layout. Serves both directions.

A table is a list of entries. `to_tree` reads a state dict by it and `to_state_dict` writes one, so an import and its
export cannot disagree. Leaves are named by dotted paths in a plain nested dict.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

StateDict = dict[str, np.ndarray]
_MAX_LISTED = 50  # problems that an error prints; a wrong configuration makes hundreds


class Layout(NamedTuple):
    """One tensor ↔ the leaves that it holds."""

    leaves: Callable[[np.ndarray], Sequence[np.ndarray]]
    tensor: Callable[..., np.ndarray]


def _kernel_to_flax(x):
    return x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0)  # OI → IO, OIHW → HWIO


def _kernel_to_torch(x):
    return x.T if x.ndim == 2 else x.transpose(3, 2, 0, 1)


SAME = Layout(lambda x: (x,), lambda x: x)
KERNEL = Layout(lambda x: (_kernel_to_flax(x),), _kernel_to_torch)  # of a linear layer or a 2-D convolution
# torch.nn.MultiheadAttention keeps query, key and value in one tensor.
FUSED_KERNEL = Layout(lambda x: [part.T for part in np.split(x, 3)], lambda *x: np.concatenate([p.T for p in x]))
FUSED_BIAS = Layout(lambda x: np.split(x, 3), lambda *x: np.concatenate(x))
# The released codebooks end with a padding row of zeros, which no code names.
PADDED_ROWS = Layout(lambda x: (x[:-1],), lambda x: np.concatenate([x, np.zeros_like(x[:1])]))
# Zeros of a leaf's shape, which our modules leave out; nothing is imported.
ZEROS = Layout(lambda x: (), np.zeros_like)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a state dict."""

    name: str
    paths: tuple[str, ...]  # of the leaves it holds (or only takes its shape from)
    layout: Layout = SAME
    index: int | None = None  # position on the leaf's leading axis, where ours stacks what PyTorch lists
    alias: bool = False  # the same tensor under another name: exported again, on import only compared

    def within(self, name: str, path: str, index: int | None = None) -> "Entry":
        """The entry of a part as seen from the whole."""
        paths = tuple(f"{path}.{p}" if path else p for p in self.paths)
        index = self.index if index is None else index
        return dataclasses.replace(self, name=f"{name}.{self.name}", paths=paths, index=index)


def part(name: str, path: str, entries: list[Entry], index: int | None = None) -> list[Entry]:
    """The entries of a submodule, under its PyTorch name and our path."""
    return [entry.within(name, path, index) for entry in entries]


def linear(name: str, path: str) -> list[Entry]:
    """A linear layer or convolution with bias."""
    return part(name, path, [Entry("weight", ("kernel",), KERNEL), Entry("bias", ("bias",))])


def norm(name: str, path: str) -> list[Entry]:
    """A LayerNorm or GroupNorm."""
    return part(name, path, [Entry("weight", ("scale",)), Entry("bias", ("bias",))])


def to_state_dict(table: list[Entry], tree: dict) -> StateDict:
    """PyTorch's tensors from a nested dict of arrays."""
    return {name: np.ascontiguousarray(tensor) for name, tensor in _tensors(table, tree).items()}


def _tensors(table, tree):
    def tensor(entry):
        leaves = [np.asarray(_leaf(tree, path)) for path in entry.paths]
        return entry.layout.tensor(*(leaf if entry.index is None else leaf[entry.index] for leaf in leaves))

    return {entry.name: tensor(entry) for entry in table}


def to_tree(table: list[Entry], tensors: StateDict, shapes: Any, what: str) -> dict:
    """Nested dict of float32 host arrays from a state dict.

    `shapes` is the wanted tree, of anything that has a `shape`. Raises ValueError, beginning with `what`, that lists
    every missing, unexpected and mis-shaped tensor, and every alias that differs from its original.
    """
    problems = mismatches(table, tensors, shapes)
    if problems:
        listed = problems[:_MAX_LISTED] + [f"… {len(problems) - _MAX_LISTED} more"] * (len(problems) > _MAX_LISTED)
        raise ValueError(
            f"{what}: {len(problems)} problems; is the configuration the right one?\n  " + "\n  ".join(listed)
        )
    pieces: dict[str, list[np.ndarray]] = {}
    for entry in table:
        leaves = () if entry.alias else entry.layout.leaves(np.asarray(tensors[entry.name], np.float32))
        for path, leaf in zip(entry.paths, leaves, strict=False):  # zeros have a path and no leaf
            pieces.setdefault(path, []).append(leaf)
    stacked = {path for entry in table if entry.index is not None for path in entry.paths}
    tree: dict = {}
    for path, found in pieces.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = np.stack(found) if path in stacked else np.ascontiguousarray(found[0])
    return tree


def mismatches(table: list[Entry], tensors: StateDict, shapes: Any) -> list[str]:
    """What keeps `to_tree` from reading these tensors, one line each."""
    expected = _tensors(table, _zeros(shapes))  # views: the full model's zeros take no memory
    wrong = [f"missing: {name} {x.shape}" for name, x in expected.items() if name not in tensors]
    wrong += [f"unexpected: {name} {np.shape(x)}" for name, x in tensors.items() if name not in expected]
    originals = {}
    for entry in table:
        if entry.name not in tensors:
            continue
        shape = np.shape(tensors[entry.name])
        if shape != expected[entry.name].shape:
            wrong.append(f"wrong shape: {entry.name} is {shape}, expected {expected[entry.name].shape}")
        elif not entry.alias:
            originals.setdefault(entry.paths, entry.name)
        elif entry.paths in originals and not np.array_equal(tensors[originals[entry.paths]], tensors[entry.name]):
            wrong.append(f"not shared: {entry.name} differs from {originals[entry.paths]}")
    return sorted(wrong)


def shape_differences(tree: dict, shapes: dict) -> list[str]:
    """One line for every leaf that one of two nested dicts lacks, or that has another shape there."""
    found, wanted = (
        {jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (tree, shapes))
    )
    return [
        f"{name}: {found.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
        for name in sorted(found | wanted)
        if found.get(name) != wanted.get(name)
    ][:_MAX_LISTED]


def _zeros(shapes):
    if isinstance(shapes, dict):
        return {key: _zeros(value) for key, value in shapes.items()}
    return np.broadcast_to(np.float32(0), shapes.shape)


def _leaf(tree, path):
    for key in path.split("."):
        tree = tree[key]
    return tree
