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
        actions: Number of commands; by default as many as there are bounds, or 3.
        low: Lower bound of each command, in its own unit; -1 by default.
        high: Upper bound of each command; 1 by default.
        initial_scale: Factor on the initial weights.

    Inputs: `feature` (B, features). Outputs: `command` (B, actions).
    Gradients: exact; they vanish towards the bounds.

    Raises:
        InputError: no commands, another number of bounds than of commands, or a bound that is empty.
    """

    contract: Contract
    low: Tensor
    high: Tensor

    def __init__(
        self,
        features: int = 64,
        actions: int | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        initial_scale: float = 0.1,
    ):
        super().__init__()
        if actions is None:
            given = high if low is None else low
            actions = 3 if given is None else len(given)
        low = [-1.0] * actions if low is None else list(low)
        high = [1.0] * actions if high is None else list(high)
        if actions < 1 or len(low) != actions or len(high) != actions:
            raise InputError(
                f"a policy needs one command or more and as many bounds, got actions={actions}, low={low}, high={high}"
            )
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise InputError(f"each command needs low < high, got low={low}, high={high}")
        self.contract = Contract(inputs={"feature": f"B {features}"}, outputs={"command": f"B {actions}"})
        self.head = nn.Linear(features, actions)
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
