"""Nested values: flat lists of leaves, and the names of those leaves for error messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Any
"""A tensor, a generator or any other value, or a dict, list, tuple or namedtuple of trees."""

TreeSpec = pytree.TreeSpec


def flatten(tree: Tree) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a tree in a fixed order, and what is needed to put them back. `None` is a leaf."""
    return pytree.tree_flatten(tree)


def unflatten(leaves: Iterable[Any], spec: TreeSpec) -> Tree:
    """Put leaves back into the structure that `flatten` found."""
    return pytree.tree_unflatten(leaves, spec)


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply a function to every leaf."""
    return pytree.tree_map(function, tree)


def leaf_names(tree: Tree, root: str) -> list[str]:
    """Name every leaf as one would write it in Python: `carry['pose']`, `y[0]`."""
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [root + pytree.keystr(path) for path, _ in paths]


def tensors(leaves: Iterable[Any]) -> list[Tensor]:
    """The tensors among some leaves."""
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def is_differentiable(leaf: Any) -> bool:
    """Whether a leaf is a tensor of real or complex floating numbers, so that it can carry a gradient."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def detach(leaf: Any) -> Any:
    """A tensor without its history (the storage is shared); anything else as it is."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def generators(leaves: Iterable[Any]) -> list[torch.Generator]:
    """The random generators among some leaves."""
    return [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]


@dataclass
class Flat:
    """A tree taken apart, with the names of its leaves."""

    leaves: list[Any]
    spec: TreeSpec
    names: list[str]

    @classmethod
    def of(cls, value: Tree, root: str) -> Flat:
        """Take a tree apart; `root` is what it is called in errors."""
        leaves, spec = flatten(value)
        return cls(leaves, spec, leaf_names(value, root))

    @property
    def index(self) -> list[int]:
        """Where the leaves are that require a gradient."""
        return [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """The tensors with their names."""
        return [(n, t) for n, t in zip(self.names, self.leaves, strict=True) if isinstance(t, Tensor)]
