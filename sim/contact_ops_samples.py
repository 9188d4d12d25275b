"""What the tests of all operations call the steps in contact with."""

from typing import Any

import torch
from torch import Tensor

from gradpath import geometry, kernels
from gradpath.sim import contact_articulated, contact_bodies
from gradpath.sim.contact_ops import (
    describe_bodies,
    lay_out_bodies,
    lay_out_touch,
    middle_op,
    settle_op,
    touch_op,
)
from gradpath.sim.samples import sample_model, sample_state
from gradpath.sim.tree import lay_out

_LAW: dict[str, Any] = {"time": 0.02, "width": 0.05, "scale": 0.3}
_BODIES = torch.tensor([[[0, -1], [0, 1], [1, -1], [1, 0], [0, -1]]], dtype=torch.int32)
_LIMBS = torch.tensor([[[0, -1], [1, -1], [3, 6], [5, -1], [4, 2]]], dtype=torch.int32)


def _random(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def _contacts(random: Any, batch: int, count: int) -> Tensor:
    """Contacts near touch."""
    depth, weight = 0.05 * random(batch, count, 1), 0.7 + 0.1 * random(batch, count, 1)
    normal = torch.nn.functional.normalize(random(batch, count, 3), dim=-1)
    law = torch.tensor([4e3, 0.5, 0.7]).double() * (1 + 0.1 * random(batch, count, 3))
    return torch.cat([0.3 * random(batch, count, 3), normal, depth, weight, law], -1).flatten(1)


def _settle_samples(batch: int) -> dict[str, Tensor]:
    random = _random(5)
    spread = random(batch, 2, 3, 3)
    inertia = 0.1 * (spread @ spread.mT + torch.eye(3).double())
    mass = 1 + 0.1 * random(batch, 2, 1)
    pose = geometry.pose(0.3 * random(batch, 2, 3), geometry.quat_normalize(random(batch, 2, 4)))
    velocity = random(batch, 12)
    return {
        "params": torch.cat([mass, inertia.flatten(2)], -1).flatten(1),
        "velocity": velocity,
        "free": velocity + 0.1 * random(batch, 12),
        "pose": pose.flatten(1),
        "contacts": _contacts(random, batch, 5),
    }


def _settle(params: Tensor, velocity: Tensor, free: Tensor, pose: Tensor, contacts: Tensor) -> Any:
    whole = lay_out_bodies(2, 5, pose.device)
    bodies = describe_bodies(_BODIES.to(pose.device))
    return settle_op(
        whole.layout, params, velocity, free, pose, contacts, bodies=bodies, touch=whole.touch, **_LAW
    )


def _touch_samples(batch: int) -> dict[str, Tensor]:
    random, model, values = _random(6), sample_model(), sample_state(batch)
    count = len(model.joints)
    pose = geometry.pose(random(batch, count, 3), geometry.quat_normalize(random(batch, count, 4)))
    return {
        "params": values["params"],
        "state": torch.cat([values["q"], values["qd"]], 1),
        "control": random(batch, model.nu),
        "wrench": random(batch, 6 * count),
        "pose": pose.flatten(1),
        "contacts": _contacts(random, batch, 5),
    }


def _touch(
    params: Tensor, state: Tensor, control: Tensor, wrench: Tensor, pose: Tensor, contacts: Tensor
) -> Any:
    whole = lay_out_touch(lay_out(sample_model(), pose.device), 5)
    bodies = describe_bodies(_LIMBS.to(pose.device))
    return touch_op(
        whole.layout, params, state, control, wrench, pose, contacts, bodies=bodies, touch=whole.touch, **_LAW
    )


def _middle_samples(batch: int) -> dict[str, Tensor]:
    values = sample_state(batch)
    return {"params": values["params"], "state": torch.cat([values["q"], values["qd"]], 1)}


def _middle(params: Tensor, state: Tensor) -> Any:
    layout = lay_out(sample_model(), state.device)
    return middle_op(layout, params, state, none=state.new_zeros(len(state), 0), time=0.03)


kernels.register(
    "settle_bodies",
    kernels=[contact_bodies.make_settle, contact_bodies.make_settle_adjoint],
    fn=_settle,
    samples=_settle_samples,
)
kernels.register(
    "find_middle",
    kernels=[contact_articulated.make_middle, contact_articulated.make_middle_adjoint],
    fn=_middle,
    samples=_middle_samples,
)
kernels.register(
    "step_in_contact",
    kernels=[contact_articulated.make_touch, contact_articulated.make_touch_adjoint],
    fn=_touch,
    samples=_touch_samples,
)
