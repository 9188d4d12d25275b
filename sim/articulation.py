"""Articulated models through time: joint forces, steps, whole motions, and the stage of a pipeline."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradpath.contract import Contract
from gradpath.errors import InputError, ShapeError
from gradpath.sim import articulated_kernels as kernels_of
from gradpath.sim.checks import check_inputs, check_rows, check_step
from gradpath.sim.contact import Contact
from gradpath.sim.contact_step import contact_step
from gradpath.sim.dynamics import forward_kinematics
from gradpath.sim.model import PARAMETERS, Model
from gradpath.sim.tree import lay_out, pack
from gradpath.sim.tree_op import TreeOp
from gradpath.stage import Stage

joint_forces_op = TreeOp(
    forward=kernels_of.make_joint_forces,
    adjoint=kernels_of.make_joint_forces_adjoint,
    inputs=("q", "qd", "control"),
    outputs=("force",),
    adjoint_takes=("q", "qd", "control"),
    widths=lambda layout, *_: (layout.tree.freedoms,),
)
move_op = TreeOp(
    forward=kernels_of.make_move,
    adjoint=kernels_of.make_move_adjoint,
    inputs=("state", "control", "wrench"),
    outputs=("states",),
    adjoint_takes=("state", "control", "wrench", "states"),
    widths=lambda layout, widths, constants: (constants["steps"] * widths["state"],),
)


def joint_forces(model: Model, q: Tensor, qd: Tensor, control: Tensor | None = None) -> Tensor:
    """Return the forces of everything in the joints, the `tau` of `forward_dynamics`.

    - damper: -damping qd; dry friction: -dry_friction qd / sqrt(qd^2 + 0.05^2).
    - spring of a hinge or slide: -stiffness (q - rest).
    - stop at a limit, depth x past it: limit_stiffness r(x) (1 + tanh(limit_dissipation dx/dt)), with r(x) zero below
      -limit_width, x above limit_width, and a parabola between: continuously differentiable, and never pulling.
    - actuator: gear clip(gain clip(control) + bias . (1, gear q, gear qd)), within force_range and control_range.

    Args:
        model: The robot.
        q: Coordinates, shape (B, nq), differentiable.
        qd: Velocities, shape (B, nv), differentiable.
        control: What the actuators get, shape (B, nu), differentiable; zero by default.
    Returns:
        Joint forces, shape (B, nv).
    Raises:
        ShapeError, InputError: as `forward_dynamics`.
    Gradients: exact in all inputs and in the parameters of joints and actuators. Beyond a limit of control or force the
        gradient is zero, and the limit then has it.
    """
    given = q.new_zeros(len(q), model.nu) if control is None else control
    expected = {"q": (q, (model.nq,)), "qd": (qd, (model.nv,)), "control": (given, (model.nu,))}
    check_inputs(model, "joint_forces", expected)
    params = pack(model, q.dtype, q.device)
    check_rows(model, "joint_forces", params, len(q))
    (force,) = joint_forces_op(lay_out(model, q.device), params, q, qd, given)
    return force


def simulate(
    model: Model,
    state: Mapping[str, Tensor],
    controls: Tensor,
    dt: float,
    substeps: int = 1,
    wrenches: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the motion over many steps: one launch, and one for its gradient.

    A substep h: q <- q + qd h/2 along the manifold; accelerations there, with velocity qd and then with
    qd + qdd h/2; qd <- qd + qdd h; q <- q + qd h/2. It is of second order. Viscous damping is implicit, so stiff
    dampers are stable; everything else limits h, such as h sqrt(stiffness / inertia) < 2.

    Args:
        model: The robot.
        state: `q` (B, nq) and `qd` (B, nv) at the start, differentiable.
        controls: What the actuators get during each step, shape (B, T, nu), differentiable.
        dt: Duration of a step [s].
        substeps: Integration steps in a step.
        wrenches: From outside during each step, shape (B, T, N, 6), as for `forward_dynamics`, differentiable; none by
            default.
    Returns:
        The states after each step: `q` (B, T, nq) and `qd` (B, T, nv).
    Raises:
        ShapeError, InputError: as `forward_dynamics`; and for a duration that is not positive.
    Gradients: exact in all but dt, and in every parameter of the model. The states after each step are kept, those of
        the substeps are computed again.
    """
    check_step(dt, substeps)
    q, qd = state["q"], state["qd"]
    bodies = len(model.joints)
    expected: dict[str, Any] = {"q": (q, (model.nq,)), "qd": (qd, (model.nv,))}
    expected |= {"controls": (controls, ("T", model.nu)), "wrenches": (wrenches, ("T", bodies, 6))}
    check_inputs(model, "simulate", expected)
    worlds, steps = controls.shape[:2]
    if wrenches is not None and wrenches.shape[1] != steps:
        raise ShapeError(
            f"simulate: controls are for {steps} steps and wrenches for {wrenches.shape[1]}; give one of each per step"
        )
    params = pack(model, q.dtype, q.device)
    check_rows(model, "simulate", params, worlds)
    load = q.new_zeros(worlds, 0) if wrenches is None else wrenches.flatten(1)
    size = model.nq + model.nv
    (states,) = move_op(
        lay_out(model, q.device), params, torch.cat([q, qd], 1), controls.flatten(1), load,
        history=substeps * size, steps=steps, substeps=substeps, time=dt / substeps,
    )  # fmt: skip
    states = states.reshape(worlds, steps, size)
    return {"q": states[..., : model.nq], "qd": states[..., model.nq :]}


def step(
    model: Model,
    state: Mapping[str, Tensor],
    control: Tensor,
    dt: float,
    substeps: int = 1,
    wrench: Tensor | None = None,
) -> dict[str, Tensor]:
    """Advance by one step; see `simulate`.

    Args:
        model: The robot.
        state: `q` (B, nq) and `qd` (B, nv), differentiable.
        control: What the actuators get, shape (B, nu), differentiable.
        dt: Duration of the step [s].
        substeps: Integration steps in it.
        wrench: From outside, shape (B, N, 6), as for `forward_dynamics`, differentiable; none by default.
    Returns:
        The state after the step: `q` (B, nq) and `qd` (B, nv).
    Raises:
        ShapeError, InputError: as `simulate`.
    Gradients: as `simulate`.
    """
    wrenches = None if wrench is None else wrench.unsqueeze(1)
    states = simulate(model, state, control.unsqueeze(1), dt, substeps, wrenches)
    return {name: value[:, 0] for name, value in states.items()}


class Articulation(Stage):
    """A robot as a stage: state and control in, state after one step and poses of the bodies out.

    Inputs: `state` with `q` and `qd`, `control`, optional `wrench`, and optional `parameters` that replace some of the
    model's for one call; see `step` and `Model` for shapes and units.
    Outputs: `state`, and `pose` (B, N, 7), the poses of the bodies after the step.

    Args:
        model: The robot.
        dt: Duration of a step [s].
        substeps: Integration steps in it.
        contact: How it touches itself and what stands still, such as `Contact(model.shapes)`; nothing touches without.
        learnable: Names of parameters of the model that become `nn.Parameter`s; the others are buffers.

    Raises:
        InputError: a duration that is not positive, or no such parameter; when called, as `step`.
    Gradients: exact in state, control, wrench and parameters.
    """

    gravity: Tensor

    def __init__(
        self,
        model: Model,
        dt: float,
        substeps: int = 1,
        *,
        contact: Contact | None = None,
        learnable: Iterable[str] = (),
    ):
        super().__init__()
        check_step(dt, substeps)
        self.contact = contact
        chosen = set(learnable)
        if not chosen <= set(PARAMETERS):
            unknown = ", ".join(sorted(chosen - set(PARAMETERS)))
            raise InputError(
                f"articulation: no parameter {unknown} to learn; there are {', '.join(PARAMETERS)}"
            )
        self.dt, self.substeps, self._model = dt, substeps, model
        state = {"q": f"B {model.nq}", "qd": f"B {model.nv}"}
        bodies = len(model.joints)
        self.contract = Contract(
            inputs={
                "state": state, "control": f"B {model.nu}", "wrench": f"B {bodies} 6", "parameters": "any",
            },
            outputs={"state": state, "pose": f"B {bodies} 7"},
        )  # fmt: skip
        for name, value in model.parameters().items():
            if name in chosen:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, value)

    @property
    def model(self) -> Model:
        """The robot with the parameters that the stage has now."""
        return self._model.replace(**{name: getattr(self, name) for name in PARAMETERS})

    def forward(
        self,
        state: Mapping[str, Tensor],
        control: Tensor,
        wrench: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Advance by one step; see `step`, and `contact_step` where it touches."""
        model = self.model if parameters is None else self.model.replace(**parameters)
        if self.contact is None:
            after = step(model, state, control, self.dt, self.substeps, wrench)
        else:
            after = contact_step(model, self.contact, state, control, self.dt, self.substeps, wrench)
        return {"state": after, "pose": forward_kinematics(model, after["q"])}

    def home_state(self, batch: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the state at rest at the model's home, for `batch` worlds."""
        home = self._model.home.to(dtype=dtype or torch.get_default_dtype(), device=self.gravity.device)
        return {"q": home.repeat(batch, 1), "qd": home.new_zeros(batch, self._model.nv)}
