"""Articulated models that touch: steps whose contact forces are found anew in each substep."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.sim.articulation import step
from gradpath.sim.contact import Contact
from gradpath.sim.dynamics import forward_kinematics
from gradpath.sim.model import Model


def contact_step(
    model: Model,
    contact: Contact,
    state: Mapping[str, Tensor],
    control: Tensor,
    dt: float,
    substeps: int = 1,
    wrench: Tensor | None = None,
) -> dict[str, Tensor]:
    """Advance a model by one step in contact; see `step`.

    In each substep of duration h the contacts are looked at where the bodies are after h/2, the middle at which the
    step takes its accelerations, and their forces are held through it. They limit h: `h sqrt(stiffness / mass) < 2`
    with the mass that a contact feels, such as that of a foot.

    Args:
        model: The robot.
        contact: Its contacts, made of `model.shapes`, or of these and others that stand still.
        state: `q` (B, nq) and `qd` (B, nv), differentiable.
        control: What the actuators get, shape (B, nu), differentiable.
        dt: Duration of the step [s].
        substeps: Integration steps in it.
        wrench: From outside, shape (B, N, 6), differentiable; none by default.
    Returns:
        The state after the step: `q` (B, nq) and `qd` (B, nv).
    Raises:
        ShapeError, InputError: as `step`.
    Gradients: exact in state, control, wrench, all parameters of the model, and all of the contact.
    """
    h = dt / substeps
    now = {"q": state["q"], "qd": state["qd"]}
    mobility = body_mobility(model, state["q"])
    for _ in range(substeps):
        pose, twist = forward_kinematics(model, now["q"], now["qd"])
        touch = contact.wrenches(_ahead(pose, twist, 0.5 * h), twist, h, mobility)
        now = step(model, now, control, h, 1, touch if wrench is None else touch + wrench)
    return now


def body_mobility(model: Model, like: Tensor) -> dict[str, Tensor]:
    """What `Contact.wrenches` takes as `mobility`, for the bodies of a model by themselves.

    A body in a chain moves less than it would alone, so this is an upper bound, which is what implicit friction needs.
    """
    worlds, count = len(like), len(model.joints)
    mass = model.mass.to(like).expand(worlds, count)
    inertia = model.inertia.to(like).expand(worlds, count, 3, 3)
    heavy = mass > 0
    turns = torch.linalg.det(inertia.detach()) > 0
    unit = torch.eye(3, dtype=like.dtype, device=like.device)
    inverse = torch.linalg.inv(torch.where(turns[..., None, None], inertia, unit))
    return {
        "inverse_mass": torch.where(heavy, 1 / torch.where(heavy, mass, torch.ones_like(mass)), 0.0),
        "inverse_inertia": torch.where(turns[..., None, None], inverse, 0.0),
        "centre": model.com.to(like).expand(worlds, count, 3),
    }


def _ahead(pose: Tensor, twist: Tensor, time: float) -> Tensor:
    """Poses (B, N, 7) after `time` [s] at constant twists (B, N, 6)."""
    turn = geometry.quat_exp(time * twist[..., 3:])
    return geometry.pose(pose[..., :3] + time * twist[..., :3], geometry.quat_multiply(turn, pose[..., 3:]))
