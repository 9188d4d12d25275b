"""Model-predictive control as a stage: plan with any stage that steps a state, act on the first control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath import tree
from gradpath.contract import Contract
from gradpath.errors import ContractError, InputError
from gradpath.planners.costs import Costs
from gradpath.planners.dynamics import StageDynamics
from gradpath.planners.ilqr import Gradient, Hessian, ilqr
from gradpath.specs import SpecLike, TensorSpec
from gradpath.stage import Stage

# What the gradient of a plan is called in a contract: only that of the optimum itself is a derivative of it.
_KINDS = {"implicit": "implicit", "gauss_newton": "surrogate", "unroll": "surrogate"}


class MPC(Stage):
    """Plans by `ilqr` in every call, from the plan of the call before, with gradients through the optimum.

    Args:
        model: The stage that is planned with: takes `state` and a control, gives the next state.
        cost: `Costs`; or a function `cost(state, control, **targets)` of each step, (..., T, B), for which tensors of
            the state have any axes before the batch: index the last ones.
        horizon: Steps that it looks ahead.
        low: Least control, one number per component.
        high: Largest control.
        final: `final(state, **targets)` of the last state, (..., B), where `cost` is a function.
        targets: Specs of inputs that the costs take, such as {"goal": "B 3"}.
        passed: Inputs of the model that come from outside, such as wind.
        initial: The control that a plan without a predecessor repeats; zero by default.
        gradient: As in `ilqr`.
        hessian: As in `ilqr`.
        second: Where second derivatives of the model come from, as in `StageDynamics`.
        iterations: The most iterations in one call.
        tolerance: As in `ilqr`; a plan that is replaced after one step need not be exact to the last digit.
        state: The model's input that is the state.
        control: The model's input that is the control.
        output: The model's output that is the next state.

    Inputs: `state` as in the model, the targets, what is passed on, and optionally `plan` (B, T, m), the one before.
    Outputs: `control`, the first of the plan; `plan` (B, T, m), shifted by one step, for the next call, without
    gradient; `converged` (B,) bool. The gradient of a world that did not converge is zero, and a warning says which.
    Gradients: as chosen, in state, targets, what is passed on, and the parameters of model and costs.

    Raises:
        InputError: an empty box, an unknown choice, a state that is not finite.
        ContractError: the model has no such inputs or outputs, or no second derivatives where they are needed.
    """

    contract: Contract
    low: Tensor
    high: Tensor
    initial: Tensor

    def __init__(
        self,
        model: Stage,
        cost: Costs | Callable[..., Tensor],
        horizon: int,
        low: Sequence[float],
        high: Sequence[float],
        *,
        final: Callable[..., Tensor] | None = None,
        targets: Mapping[str, SpecLike] | None = None,
        passed: Sequence[str] = (),
        initial: Sequence[float] | None = None,
        gradient: Gradient = "implicit",
        hessian: Hessian = "exact",
        second: str = "auto",
        iterations: int = 50,
        tolerance: float | None = None,
        state: str = "state",
        control: str = "control",
        output: str | None = None,
    ):
        super().__init__()
        size = len(low)
        if horizon < 1 or len(high) != size or not all(a <= b for a, b in zip(low, high, strict=True)):
            raise InputError(
                f"MPC: the horizon is at least 1 and low <= high for each control, got horizon {horizon}, "
                f"low {list(low)}, high {list(high)}"
            )
        if isinstance(cost, Costs) != (final is None):
            raise InputError("MPC: pass Costs, which know the end; or two functions, cost and final=")
        if gradient not in _KINDS:
            raise InputError(f'MPC: gradient "{gradient}" is not known; it is one of {", ".join(_KINDS)}')
        self.targets = dict(targets or {})
        self.passed = tuple(passed)
        inputs = model.contract.inputs
        for name in (state, control, *self.passed):
            if name not in inputs:
                raise ContractError(f'MPC: the model has no input "{name}"; it has {", ".join(inputs)}')
        spec = model.contract.input_specs[control]
        if not isinstance(spec, TensorSpec) or spec.dims[1:] != (size,):
            raise ContractError(
                f'MPC: the model\'s "{control}" is {spec.text!r}, and low has {size} numbers; a control is one tensor '
                f'"B {size}"'
            )
        self.contract = Contract(
            inputs={
                "state": inputs[state],
                **{name: inputs[name] for name in self.passed},
                **self.targets,
                "plan": f"B {horizon} {size}",
            },
            outputs={"control": f"B {size}", "plan": f"B {horizon} {size}", "converged": "B:bool"},
            gradient=_KINDS[gradient],
            detached=("plan",),
        )
        self.model, self.horizon = model, horizon
        self.cost: Callable[..., Tensor] | None
        self.final: Callable[..., Tensor] | None
        self.cost, self.final = cost if not isinstance(cost, Costs) else None, final
        if isinstance(cost, Costs):
            self.cost = cost.step if cost.has_running else None
            self.final = cost.end if cost.has_terminal else None
        self.choices: dict[str, Any] = {
            "gradient": gradient, "hessian": hessian, "iterations": iterations, "tolerance": tolerance,
        }  # fmt: skip
        self.names: dict[str, Any] = {"state": state, "control": control, "output": output, "second": second}
        dtype = torch.get_default_dtype()
        self.register_buffer("low", torch.tensor(list(low), dtype=dtype))
        self.register_buffer("high", torch.tensor(list(high), dtype=dtype))
        self.register_buffer(
            "initial", torch.tensor([0.0] * size if initial is None else list(initial), dtype=dtype)
        )

    def forward(self, state: tree.Tree, plan: Tensor | None = None, **others: Any) -> dict[str, Tensor]:
        """Plan for each world, and return what to do first."""
        leaves, _ = tree.flatten(state)
        batch, size = len(leaves[0]), len(self.low)
        if plan is None:
            plan = self.initial.expand(batch, self.horizon, size)
        dynamics = StageDynamics(
            self.model, state, plan[:, 0], {name: others[name] for name in self.passed}, **self.names
        )
        targets = {name: others[name] for name in self.targets}
        unpack = dynamics.state_packing.unpack

        def cost(x: Tensor, u: Tensor) -> Tensor:
            return torch.zeros_like(x[..., 0]) if self.cost is None else self.cost(unpack(x), u, **targets)

        def final(x: Tensor) -> Tensor:
            return torch.zeros_like(x[..., 0]) if self.final is None else self.final(unpack(x), **targets)

        found = ilqr(
            dynamics,
            cost,
            final,
            dynamics.state_packing.pack(state),
            plan,
            low=self.low,
            high=self.high,
            **self.choices,
        )
        u = found.controls
        ahead = torch.cat([u[:, 1:], u[:, -1:]], 1).detach()
        return {"control": u[:, 0], "plan": ahead, "converged": found.converged}
