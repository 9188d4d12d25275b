"""Policies: from features to commands within bounds."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.stage import Stage


class Policy(Stage):
    """A linear head whose commands stay within bounds, by a tanh.

    The last layer starts small, so that a fresh policy commands the middle of the bounds.

    Args:
        features: Size of the feature.
        low: Lower bound of each command, in its own unit.
        high: Upper bound of each command.
        initial_scale: Factor on the initial weights.

    Inputs: `feature` (B, features). Outputs: `command` (B, len(low)).
    Gradients: exact; they vanish towards the bounds.

    Raises:
        InputError: bounds of different length, or empty.
    """

    contract: Contract
    low: Tensor
    high: Tensor

    def __init__(
        self,
        features: int = 64,
        low: Sequence[float] = (-1.0, -1.0, -1.0),
        high: Sequence[float] = (1.0, 1.0, 1.0),
        initial_scale: float = 0.1,
    ):
        super().__init__()
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise InputError(f"each command needs low < high, got low={list(low)}, high={list(high)}")
        self.contract = Contract(inputs={"feature": f"B {features}"}, outputs={"command": f"B {len(low)}"})
        self.head = nn.Linear(features, len(low))
        with torch.no_grad():
            self.head.weight.mul_(initial_scale)
            self.head.bias.zero_()
        self.register_buffer("low", torch.tensor(low, dtype=torch.get_default_dtype()))
        self.register_buffer("high", torch.tensor(high, dtype=torch.get_default_dtype()))

    def forward(self, feature: Tensor) -> Tensor:
        """Command each world."""
        return self.low + (self.high - self.low) * (0.5 + 0.5 * torch.tanh(self.head(feature)))


class Idle(Stage):
    """A planner that commands zero whatever it is told: the baseline of every policy that corrects a controller.

    Args:
        features: Size of the feature it ignores.
        actions: Number of commands.

    Inputs: `feature` (B, features). Outputs: `command` (B, actions), zero. Gradients: none.
    """

    contract: Contract

    def __init__(self, features: int = 64, actions: int = 3):
        super().__init__()
        self.contract = Contract(
            inputs={"feature": f"B {features}"}, outputs={"command": f"B {actions}"}, gradient="none"
        )
        self.actions = actions

    def forward(self, feature: Tensor) -> Tensor:
        """Command nothing."""
        return feature.new_zeros(len(feature), self.actions)
