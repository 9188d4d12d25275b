"""Whether autograd has a second derivative of a value, before something is built on it.

A function that is `once_differentiable`, such as a Warp kernel, would otherwise have one of zero, without an error,
wherever the seed of the gradient is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Nodes that torch and `kernels.Op` put behind a gradient that cannot be differentiated.
REFUSALS = ("Error", "_OnceDifferentiableBackward")


def has_second_derivative(value: Tensor, inputs: Sequence[Tensor] | None = None) -> bool:
    """Whether the gradient of a value can be differentiated once more, as far as its graph tells.

    Args:
        value: Any shape, with its graph, which stays.
        inputs: What the gradient is with respect to; all leaves of the graph by default. What lies before these inputs
            may be differentiable once only.
    """
    if not value.requires_grad:
        return True
    with torch.enable_grad():
        seed = torch.ones_like(value, requires_grad=True)
        wanted = _leaves(value) if inputs is None else inputs
        slopes = torch.autograd.grad(value, wanted, seed, create_graph=True, allow_unused=True)
        return not any(_refuses(slope) for slope in slopes if slope is not None)


def _nodes(value: Tensor) -> set[Any]:
    """Every node of the graph of a value."""
    seen, stack = set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [upstream for upstream, _ in node.next_functions]
    return seen


def _leaves(value: Tensor) -> list[Tensor]:
    return [node.variable for node in _nodes(value) if hasattr(node, "variable")]


def _refuses(slope: Tensor) -> bool:
    return any(type(node).__name__ in REFUSALS for node in _nodes(slope))
