"""Kinematics and dynamics of articulated models as functions of torch tensors, first axis the worlds.

The equations of motion are M(q) qdd + h(q, qd) = tau + J(q)^T w: mass matrix with armature, Coriolis, centrifugal and
gravity terms, joint forces, and wrenches w from outside. Damping, springs, stops and actuators are not in `tau` by
themselves; `joint_forces` gives them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradpath.errors import InputError
from gradpath.sim import articulated_kernels as kernels_of
from gradpath.sim.checks import check_inputs, check_rows
from gradpath.sim.model import Model
from gradpath.sim.tree import Layout, lay_out, pack
from gradpath.sim.tree_op import TreeOp, launch_tree

locate_op = TreeOp(
    forward=kernels_of.make_locate,
    adjoint=kernels_of.make_locate_adjoint,
    inputs=("q", "qd"),
    outputs=("pose", "twist"),
    adjoint_takes=("q", "qd"),
    widths=lambda layout, widths, _: (7 * layout.tree.bodies, 6 * layout.tree.bodies if widths["qd"] else 0),
)
inverse_op = TreeOp(
    forward=kernels_of.make_inverse,
    adjoint=kernels_of.make_inverse_adjoint,
    inputs=("q", "qd", "qdd", "wrench"),
    outputs=("tau",),
    adjoint_takes=("q", "qd", "qdd", "wrench"),
    widths=lambda layout, *_: (layout.tree.freedoms,),
)
forward_op = TreeOp(
    forward=kernels_of.make_forward,
    adjoint=kernels_of.make_forward_adjoint,
    inputs=("q", "qd", "tau", "wrench"),
    outputs=("qdd",),
    adjoint_takes=("q", "qd", "wrench", "qdd"),
    widths=lambda layout, *_: (layout.tree.freedoms,),
)


def forward_kinematics(model: Model, q: Tensor, qd: Tensor | None = None) -> Any:
    """Return where the bodies are, and how they move.

    Args:
        model: The robot.
        q: Coordinates, shape (B, nq), differentiable.
        qd: Velocities, shape (B, nv), differentiable; when given, the twists are returned too.
    Returns:
        Poses of the bodies in the world, shape (B, N, 7). With `qd`, a pair of these and of the twists, shape
        (B, N, 6): linear velocity of the origin of the body [m/s], then angular velocity [rad/s], in world axes.
    Raises:
        ShapeError: a tensor of another shape, dtype or device than the model needs.
        InputError: a coordinate that is not finite, or a quaternion whose norm is not 1.
    Gradients: exact in q, qd and the model's placements, axes, anchors, ratios and offsets. A quaternion and an axis
        count by their direction; along their length the gradient is zero.
    """
    layout, params, (q, qd_or_none) = _prepare(model, "forward_kinematics", q, {"qd": qd})
    rates = q.new_zeros(len(q), 0) if qd_or_none is None else qd_or_none
    pose, twist = locate_op(layout, params, q, rates)
    pose = pose.reshape(len(q), len(model.joints), 7)
    return pose if qd is None else (pose, twist.reshape(len(q), len(model.joints), 6))


def inverse_dynamics(
    model: Model, q: Tensor, qd: Tensor, qdd: Tensor, wrench: Tensor | None = None
) -> Tensor:
    """Return the joint forces of a motion: M(q) qdd + h(q, qd) - J(q)^T w.

    Args:
        model: The robot.
        q: Coordinates, shape (B, nq), differentiable.
        qd: Velocities, shape (B, nv), differentiable.
        qdd: Accelerations (rates of `qd`), shape (B, nv), differentiable.
        wrench: Force [N], then torque [N m] about the origin of each body, in world axes, from outside, shape
            (B, N, 6), differentiable; none by default.
    Returns:
        Joint forces, shape (B, nv).
    Raises:
        ShapeError: a tensor of another shape, dtype or device than the model needs.
        InputError: a number that is not finite, or a quaternion whose norm is not 1.
    Gradients: exact in all inputs, and in the model's masses, centres of mass, inertias, placements, axes, anchors,
        ratios, offsets, armatures and gravity.
    References: Featherstone 2008, table 5.1.
    """
    layout, params, (q, qd, qdd, wrench) = _prepare(
        model, "inverse_dynamics", q, {"qd": qd, "qdd": qdd}, wrench
    )
    (tau,) = inverse_op(layout, params, q, qd, qdd, wrench)
    return tau


def forward_dynamics(
    model: Model, q: Tensor, qd: Tensor, tau: Tensor, wrench: Tensor | None = None
) -> Tensor:
    """Return the accelerations: M(q)^-1 (tau + J(q)^T w - h(q, qd)).

    Args:
        model: The robot.
        q: Coordinates, shape (B, nq), differentiable.
        qd: Velocities, shape (B, nv), differentiable.
        tau: All joint forces, those of dampers and springs included, shape (B, nv), differentiable.
        wrench: As for `inverse_dynamics`.
    Returns:
        Accelerations (rates of `qd`), shape (B, nv).
    Raises:
        ShapeError: a tensor of another shape, dtype or device than the model needs.
        InputError: a number that is not finite, or a quaternion whose norm is not 1.
    Gradients: exact in all inputs, and in the parameters that `inverse_dynamics` names. The factorization is not
        differentiated: with l = M^-1 times the gradient of the result, l is that of tau, and the rest is that of
        `inverse_dynamics` at this acceleration, seeded with -l.
    References: Featherstone 2008, sections 6.2 and 6.5.
    """
    layout, params, (q, qd, tau, wrench) = _prepare(
        model, "forward_dynamics", q, {"qd": qd, "tau": tau}, wrench
    )
    (qdd,) = forward_op(layout, params, q, qd, tau, wrench)
    return qdd


def mass_matrix(model: Model, q: Tensor) -> Tensor:
    """Return the mass matrix, armature included, shape (B, nv, nv), for coordinates q, shape (B, nq).

    Raises:
        ShapeError, InputError: as `forward_kinematics`.
    Gradients: exact in q and in the parameters that `inverse_dynamics` names.
    """
    layout, params, (q,) = _prepare(model, "mass_matrix", q, {})
    matrix: Tensor = MassMatrix.apply(layout, params, q)
    return matrix


def jacobian(model: Model, q: Tensor, body: str) -> Tensor:
    """Return how the twist of a body depends on the velocities.

    Args:
        model: The robot.
        q: Coordinates, shape (B, nq), differentiable.
        body: Name of a body.
    Returns:
        Jacobian, shape (B, 6, nv): times qd it is the twist that `forward_kinematics` gives.
    Raises:
        InputError: no such body.
        ShapeError, InputError: as `forward_kinematics`.
    Gradients: exact in q and in the parameters that `forward_kinematics` names.
    """
    if body not in model.body_names:
        raise InputError(f"model {model.name!r} has no body {body!r}; it has {', '.join(model.body_names)}")
    layout, params, (q,) = _prepare(model, "jacobian", q, {})
    nv, index = model.nv, model.body_names.index(body)
    units = torch.eye(nv, dtype=q.dtype, device=q.device).repeat(len(q), 1)  # the velocities one by one
    rows = params if len(params) == 1 else params.repeat_interleave(nv, 0)
    _, twist = locate_op(layout, rows, q.repeat_interleave(nv, 0), units)
    return twist.reshape(len(q), nv, -1, 6)[:, :, index].transpose(1, 2)


class MassMatrix(torch.autograd.Function):
    """Its columns are inverse dynamics of unit accelerations at rest without gravity, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, params: Tensor, q: Tensor) -> Tensor:
        """Launch the composite rigid body algorithm."""
        q = q.contiguous()
        nv = layout.tree.freedoms
        matrix = q.new_zeros(len(q), nv * nv)
        work = q.new_empty(len(q), layout.scratch)
        launch_tree(kernels_of.make_mass, layout, params, len(q), [q, work, matrix])
        ctx.layout = layout
        ctx.save_for_backward(params, q)
        return matrix.reshape(len(q), nv, nv)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Launch the adjoint of inverse dynamics, one row for each column."""
        params, q = ctx.saved_tensors
        layout, worlds, nv = ctx.layout, len(q), ctx.layout.tree.freedoms
        weightless = params.clone()
        weightless[:, layout.tree.gravity : layout.tree.gravity + 3] = 0.0
        weightless = weightless.expand(worlds, -1).repeat_interleave(nv, 0)
        units = torch.eye(nv, dtype=q.dtype, device=q.device).repeat(worlds, 1)
        rows = worlds * nv
        rest, none = q.new_zeros(rows, nv), q.new_zeros(rows, 0)
        grads = [q.new_zeros(rows, n) for n in (layout.parameters, q.shape[1], nv, nv, 0)]
        seeds = grad.transpose(1, 2).reshape(rows, nv).contiguous()  # column by column
        work = q.new_empty(rows, layout.scratch)
        inputs = [q.repeat_interleave(nv, 0), rest, units, none]
        launch_tree(kernels_of.make_inverse_adjoint, layout, weightless, rows, [*inputs, seeds, work, *grads])
        grad_params, grad_q = (g.reshape(worlds, nv, -1).sum(1) for g in grads[:2])
        grad_params[:, layout.tree.gravity : layout.tree.gravity + 3] = 0.0
        return None, grad_params.sum(0, keepdim=True) if len(params) == 1 else grad_params, grad_q


def _prepare(
    model: Model, function: str, q: Tensor, rates: Mapping[str, Tensor | None], *wrench: Tensor | None
) -> tuple[Layout, Tensor, list[Any]]:
    """Check the inputs; return layout, packed parameters, and the inputs as the kernels take them."""
    expected: dict[str, Any] = {"q": (q, (model.nq,))}
    expected |= {name: (value, (model.nv,)) for name, value in rates.items()}
    for value in wrench:
        expected["wrench"] = (value, (len(model.joints), 6))
    check_inputs(model, function, expected)
    params = pack(model, q.dtype, q.device)
    check_rows(model, function, params, len(q))
    loads = [q.new_zeros(len(q), 0) if value is None else value.flatten(1) for value in wrench]
    return lay_out(model, q.device), params, [q, *rates.values(), *loads]
