"""One call of the step of a time loop, and what is held against it: structure, shapes, writes in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from gradpath import capture, tree
from gradpath.errors import ContractError, ShapeError


class Result(NamedTuple):
    """What one step returned, flat."""

    carry: list[Any]
    ys: list[Any]
    ys_spec: tree.TreeSpec

    def detached_carry(self) -> list[Any]:
        """The carry for the next step."""
        return [tree.detach(leaf) for leaf in self.carry]


class StepCall:
    """Calls a step on flat leaves, put back into trees.

    Args:
        step: The step.
        carry, xs: What it takes at the first step, whose structure holds for all.
        constants: What all steps read; None where the step takes none.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Any, Any]],
        carry: tree.Flat,
        xs: tree.Flat,
        constants: tree.Flat | None,
    ):
        self.step = step
        self.names, self.spec = carry.names, carry.spec
        self.xs_spec = xs.spec
        self.constants_spec = None if constants is None else constants.spec

    def __call__(self, step: int, carry: list[Any], xs: list[Any], constants: list[Any]) -> Result:
        """Run a step.

        Raises:
            ContractError: it returns another structure, or changes its carry in place.
            ShapeError: a leaf of the carry changes its shape.
        """
        versions = [leaf._version for leaf in _watchable(carry)]
        arguments = [tree.unflatten(carry, self.spec), tree.unflatten(xs, self.xs_spec)]
        if self.constants_spec is not None:
            arguments.append(tree.unflatten(constants, self.constants_spec))
        result = self.step(*arguments)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ContractError(
                f"step {step} returned a {type(result).__name__}; a step returns the pair (carry, y), with y None "
                "where there is nothing to stack"
            )
        after, spec = tree.flatten(result[0])
        if spec != self.spec:
            raise ContractError(
                f"step {step} was given the carry {self.spec} and returned {spec}; "
                "a carry keeps its structure from step to step"
            )
        for leaf, version in zip(_watchable(carry), versions, strict=True):
            if leaf._version != version:
                name = next(n for n, other in zip(self.names, carry, strict=True) if other is leaf)
                raise ContractError(
                    f"step {step} changed {name} in place; a recomputed step would start from the changed value, "
                    "so return a new tensor instead"
                )
        self._check_shapes(step, carry, after)
        return Result(after, *tree.flatten(result[1]))

    def _check_shapes(self, step: int, before: list[Any], after: list[Any]) -> None:
        for name, old, new in zip(self.names, before, after, strict=True):
            if not isinstance(old, Tensor):
                continue
            if (
                not isinstance(new, Tensor)
                or new.shape != old.shape
                or tree.is_differentiable(new) != tree.is_differentiable(old)
            ):
                got = capture.describe(new) if isinstance(new, Tensor) else f"a {type(new).__name__}"
                raise ShapeError(
                    f"step {step} was given {name} as {capture.describe(old)} and returned it as {got}; "
                    "a carry keeps its shapes from step to step"
                )


def _watchable(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]
