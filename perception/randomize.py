"""Domain randomization: parameters that differ from world to world, so that a policy does not rely on one value."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.stage import Stage


class DomainRandomization(Stage):
    """Scales each parameter of each world by a factor of its own.

    Run it once per episode, before the rollout; in the step of a rollout it would draw anew in every step.

    Args:
        factors: Least and largest factor of each parameter, by name; drawn evenly on a logarithmic scale.
        sizes: Components of each parameter that is not one number, such as {"drag": 3}; each has its own factor.

    Inputs: `parameters`, a dict with each name, (B,) or (B, k); optional `generator`, without which nothing changes.
    Outputs: `parameters`, the same, scaled: what `sim.Quadrotor` and sensors take. Gradients: exact.

    Raises:
        InputError: no parameters, or a range that is empty or not positive.
    """

    contract: Contract

    def __init__(self, factors: Mapping[str, tuple[float, float]], sizes: Mapping[str, int] | None = None):
        super().__init__()
        for name, (low, high) in factors.items():
            if not 0.0 < low <= high < math.inf:
                raise InputError(
                    f'DomainRandomization: the factors of "{name}" need 0 < low <= high, got {low} and {high}'
                )
        unknown = set(sizes or {}) - set(factors)
        if not factors or unknown:
            raise InputError(
                f"DomainRandomization: factors of at least one parameter, and sizes of these only, got "
                f"{', '.join(factors) or 'none'} and sizes of {', '.join(sizes or {}) or 'none'}"
            )
        self.factors = dict(factors)
        spec = {name: f"B {sizes[name]}" if sizes and name in sizes else "B" for name in factors}
        self.contract = Contract(
            inputs={"parameters": spec, "generator": "generator"}, outputs={"parameters": spec}
        )

    def forward(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw the parameters of each world."""
        result = {}
        for name, (low, high) in self.factors.items():
            value = parameters[name]
            result[name] = value
            if generator is not None:
                share = torch.rand(value.shape, generator=generator, dtype=value.dtype, device=value.device)
                result[name] = value * torch.exp(math.log(low) + share * math.log(high / low))
        return result
