"""Articulated models that touch: steps whose contact forces are found anew in each substep."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradpath.sim.checks import check_inputs, check_rows, check_step
from gradpath.sim.contact import Contact
from gradpath.sim.contact_ops import describe_bodies, join_contacts, lay_out_touch, middle_op, touch_op
from gradpath.sim.model import Model
from gradpath.sim.tree import lay_out, pack


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
    check_step(dt, substeps)
    expected = {
        "q": (state["q"], (model.nq,)),
        "qd": (state["qd"], (model.nv,)),
        "control": (control, (model.nu,)),
    }
    bodies = len(model.joints)
    check_inputs(model, "contact_step", expected | {"wrench": (wrench, (bodies, 6))})
    now = torch.cat([state["q"], state["qd"]], 1)
    params = pack(model, now.dtype, now.device)
    check_rows(model, "contact_step", params, len(now))
    layout, h = lay_out(model, now.device), dt / substeps
    load = now.new_zeros(len(now), 0) if wrench is None else wrench.flatten(1)
    none = now.new_zeros(len(now), 0)
    for _ in range(substeps):
        (pose,) = middle_op(layout, params, now, none=none, time=h)
        placed = pose.unflatten(1, (bodies, 7))
        points = contact.points(placed)
        contacts = join_contacts(points, contact.law_of(points, placed))
        whole = lay_out_touch(layout, points.depth.shape[1])
        (now,) = touch_op(
            whole.layout, params, now, control, load, pose, contacts,
            bodies=describe_bodies(points.bodies), touch=whole.touch, time=h, width=contact.width,
            scale=contact.slip_speed,
        )  # fmt: skip
    return {"q": now[:, : model.nq], "qd": now[:, model.nq :]}
