"""What the tests of all operations call the functions of models with: a small robot with every kind of joint."""

import functools
from typing import Any

import torch
from torch import Tensor

from gradpath import geometry, kernels
from gradpath.sim import articulated_kernels as kernels_of
from gradpath.sim.articulation import joint_forces_op, move_op
from gradpath.sim.builder import ModelBuilder
from gradpath.sim.dynamics import MassMatrix, forward_op, inverse_op, locate_op
from gradpath.sim.model import Model
from gradpath.sim.tree import Layout, lay_out, pack

CPU = torch.device("cpu")


@functools.cache
def sample_model() -> Model:
    """Return a robot with a free root, two branches, and joints of each kind, none of them aligned with an axis."""
    builder = ModelBuilder("sample", gravity=(0.3, -0.2, -9.81))
    turn = (0.5, 0.5, 0.1, 0.7)
    norm = sum(value * value for value in turn) ** 0.5
    place = (0.1, -0.2, 0.3, *(value / norm for value in turn))
    inertia = ((0.3, 0.02, -0.01), (0.02, 0.4, 0.03), (-0.01, 0.03, 0.5))
    body: dict[str, Any] = {"placement": place, "inertia": inertia, "com": (0.05, -0.1, 0.2), "armature": 0.1}
    line: dict[str, Any] = {
        "axis": (0.3, -0.5, 0.9),
        "anchor": (0.02, 0.1, -0.05),
        "damping": 0.4,
        "dry_friction": 0.2,
    }
    line |= {
        "stiffness": 3.0,
        "rest": 0.2,
        "lower": -0.4,
        "upper": 0.5,
        "limit_stiffness": 20.0,
        "limit_width": 0.3,
    }
    builder.add_body("trunk", joint="free", mass=2.0, **body)
    builder.add_body("arm", "trunk", joint="hinge", mass=1.0, offset=0.1, **body, **line)
    builder.add_body("shoulder", "trunk", joint="ball", mass=0.7, anchor=(0.1, 0.0, 0.2), damping=0.3, **body)
    builder.add_body("rail", "shoulder", joint="slide", mass=0.5, ratio=0.8, **body, **line)
    builder.add_body("plate", "rail", joint="fixed", mass=0.4, **(body | {"armature": 0.0}))
    builder.add_body(
        "finger",
        "arm",
        joint="hinge",
        mass=0.3,
        mimics="arm",
        ratio=-0.6,
        offset=0.2,
        **(body | {"axis": (0.1, 0.8, 0.2)}),
    )
    builder.add_body("base", joint="slide", mass=1.5, **body, **line)
    builder.add_servo("arm", stiffness=5.0, damping=0.5, limit=40.0)
    builder.add_actuator("rail", gear=2.0, gain=1.5, bias=(0.1, -0.3, -0.2), control_range=(-0.5, 0.5))
    builder.add_motor("base", limit=0.5)
    builder.add_actuator("shoulder", freedom=1, gear=0.5)
    return builder.build(merge_fixed=False)


def sample_state(batch: int) -> dict[str, Tensor]:
    """Return parameters, coordinates and velocities of the sample in `batch` worlds."""
    model, generator = sample_model(), torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    q = random(model.nq)
    q[:, 3:7] = geometry.quat_normalize(q[:, 3:7])
    q[:, 8:12] = geometry.quat_normalize(q[:, 8:12])
    params = pack(model, torch.float64, CPU).expand(batch, -1)
    params = params * (1 + 0.01 * torch.rand(params.shape, dtype=torch.float64, generator=generator))
    return {"params": params, "q": q, "qd": random(model.nv)}


def _samples(batch: int, *names: str) -> dict[str, Tensor]:
    model, generator = sample_model(), torch.Generator().manual_seed(4)
    values = sample_state(batch)
    loads = 6 * len(model.joints)
    sizes = {"wrench": loads, "wrenches": 2 * loads, "control": model.nu, "controls": 2 * model.nu}
    for name in names:
        numbers = sizes.get(name, model.nv)
        values[name] = torch.randn(batch, numbers, dtype=torch.float64, generator=generator)
    return values


def _layout(q: Tensor) -> Layout:
    return lay_out(sample_model(), q.device)


def _call_locate(params: Tensor, q: Tensor, qd: Tensor) -> tuple[Tensor, ...]:
    return locate_op(_layout(q), params, q, qd)


def _call_inverse(params: Tensor, q: Tensor, qd: Tensor, qdd: Tensor, wrench: Tensor) -> tuple[Tensor, ...]:
    return inverse_op(_layout(q), params, q, qd, qdd, wrench)


def _call_forward(params: Tensor, q: Tensor, qd: Tensor, tau: Tensor, wrench: Tensor) -> tuple[Tensor, ...]:
    return forward_op(_layout(q), params, q, qd, tau, wrench)


def _call_mass(params: Tensor, q: Tensor) -> Tensor:
    matrix: Tensor = MassMatrix.apply(_layout(q), params, q)
    return matrix


def _call_joint_forces(params: Tensor, q: Tensor, qd: Tensor, control: Tensor) -> tuple[Tensor, ...]:
    return joint_forces_op(_layout(q), params, q, qd, control)


def _call_move(
    params: Tensor, q: Tensor, qd: Tensor, controls: Tensor, wrenches: Tensor
) -> tuple[Tensor, ...]:
    state, history = torch.cat([q, qd], 1), q.shape[1] + qd.shape[1]
    return move_op(
        _layout(q), params, state, controls, wrenches, history=2 * history, steps=2, substeps=2, time=0.03
    )


def _register(name: str, call: Any, factories: list[Any], *names: str, drop: str = "") -> None:
    def samples(batch: int) -> dict[str, Tensor]:
        return {key: value for key, value in _samples(batch, *names).items() if key != drop}

    kernels.register(name, kernels=factories, fn=call, samples=samples)


_register("forward_kinematics", _call_locate, [kernels_of.make_locate, kernels_of.make_locate_adjoint])
_register(
    "inverse_dynamics",
    _call_inverse,
    [kernels_of.make_inverse, kernels_of.make_inverse_adjoint],
    "qdd",
    "wrench",
)
_register(
    "forward_dynamics",
    _call_forward,
    [kernels_of.make_forward, kernels_of.make_forward_adjoint],
    "tau",
    "wrench",
)
_register("mass_matrix", _call_mass, [kernels_of.make_mass, kernels_of.make_inverse_adjoint], drop="qd")
_register(
    "joint_forces",
    _call_joint_forces,
    [kernels_of.make_joint_forces, kernels_of.make_joint_forces_adjoint],
    "control",
)
_register(
    "simulate", _call_move, [kernels_of.make_move, kernels_of.make_move_adjoint], "controls", "wrenches"
)
