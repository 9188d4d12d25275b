"""The velocities that all contacts of a world find together, against the equations that define them."""

import math

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from gradpath import geometry, sim
from gradpath.sim import ShapeKind, Shapes
from gradpath.sim.contact_ops import settle

F64 = torch.float64
SPHERE, BOX, PLANE = ShapeKind.SPHERE, ShapeKind.BOX, ShapeKind.PLANE


def at(*positions: tuple[float, float, float]) -> Tensor:
    return geometry.pose(
        torch.tensor([positions], dtype=F64), geometry.quat_identity(1, len(positions), dtype=F64)
    )


def still(count: int, *velocities: tuple[float, ...]) -> Tensor:
    twist = torch.zeros(1, count, 6, dtype=F64)
    for body, velocity in enumerate(velocities):
        twist[0, body, : len(velocity)] = torch.tensor(velocity, dtype=F64)
    return twist


def balls(count: int, ground: bool = True, **law) -> sim.Contact:
    kinds = [SPHERE] * count + [PLANE] * ground
    shapes = Shapes.of(kinds, [*range(count), *[sim.WORLD] * ground], [(0.1, 0, 0)] * len(kinds))
    return sim.Contact(shapes, **law)


UNIT = torch.eye(3, dtype=F64)


def test_friction_stops_a_body_and_does_not_turn_it_back():
    contact = balls(1, stiffness=1e5, damping=0.0, friction=1.0, slip_speed=1e-3)
    heavy = 1e12 * UNIT[None, None]  # does not turn
    velocity = still(1, (0.2, 0.0, 0.0))
    after = settle(contact, at((0, 0, 0.09)), velocity, velocity, torch.ones(1, 1, dtype=F64), heavy, 1e-2)
    left, pressed = float(after[0, 0, 0]), float(after[0, 0, 2])
    assert 0 <= left < 1e-4
    # s + c s / sqrt(s^2 + v_s^2) = v, with the impulse per mass c that presses in this step
    assert left + pressed * left / math.hypot(left, 1e-3) == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("dt", [1 / 2000, 1 / 400, 1 / 100])
def test_an_elastic_bounce_returns_its_energy_however_coarse_the_step(dt):
    contact = balls(1, stiffness=5e4, damping=0.0, friction=0.0)
    mass, inertia = torch.ones(1, dtype=F64), 4e-3 * UNIT[None]
    ball = sim.RigidBodies(contact, mass, inertia, dt, gravity=(0.0, 0.0, 0.0))
    now = {"pose": at((0, 0, 0.2)), "velocity": still(1, (0.0, 0.0, -2.0))}
    with torch.no_grad():
        for _ in range(round(0.3 / dt)):
            now = ball(now)
    assert float(now["velocity"][0, 0, 2]) == pytest.approx(2.0, rel=0.01)


def test_a_chain_of_balls_shares_a_push_as_the_coupled_equations_say():
    """Three balls in a row are pushed against a wall: every contact takes what the whole row needs."""
    contact = balls(3, ground=False, stiffness=1e4, damping=0.0, friction=0.0)
    mass = torch.tensor([[1.0, 2.0, 0.5]], dtype=F64)
    inertia = UNIT.expand(1, 3, 3, 3)
    free = still(3, (0.3,), (-0.1,), (-0.4,))
    pose, time = at((0, 0, 0), (0.199, 0, 0), (0.3985, 0, 0)), 0.01
    start = still(3)
    after = settle(contact, pose, start, free, mass, inertia, time)[0, :, 0]
    gained = mass[0] * (after - free[0, :, 0])
    assert float(gained.sum()) == pytest.approx(0.0, abs=1e-12)

    def impulse(depth: float, apart: float) -> float:
        """The mean of softplus over the depths passed, by many points."""
        share = (torch.arange(20000, dtype=F64) + 0.5) / 20000
        passed = depth - share * 0.5 * time * apart
        return float(1e4 * time * 2e-3 * torch.nn.functional.softplus(passed / 2e-3).mean())

    between = [impulse(0.001, float(after[1] - after[0])), impulse(0.0005, float(after[2] - after[1]))]
    expected = torch.tensor([-between[0], between[0] - between[1], between[1]], dtype=F64)
    torch.testing.assert_close(gained, expected, rtol=1e-4, atol=1e-7)


def test_friction_is_that_of_the_normal_impulse_of_the_same_step():
    """A ball slides so fast that it cannot stick: across and along, the impulses are as Coulomb says."""
    contact = balls(1, stiffness=5e3, damping=0.4, friction=0.3)
    velocity = still(1, (5.0, -2.0, -1.0))
    mass, inertia = torch.full((1, 1), 0.7, dtype=F64), (3e-3 * UNIT)[None, None]
    after = settle(contact, at((0, 0, 0.095)), velocity, velocity, mass, inertia, 0.004)
    gained = 0.7 * (after - velocity)[0, 0, :3]
    assert float(gained[:2].norm() / gained[2]) == pytest.approx(0.3, rel=1e-4)
    lever = torch.tensor([0.0, 0.0, -0.0975], dtype=F64)  # to the middle of the overlap
    turned = 3e-3 * after[0, 0, 3:]
    torch.testing.assert_close(turned, torch.linalg.cross(lever, gained))

    def balance(end: float) -> float:
        passed = torch.linspace(0, 1, 20001, dtype=F64)
        first, change = 0.005 - 0.002, -0.002 * (-1.0 + end)
        depth = first + passed * change
        ramp = 2e-3 * torch.nn.functional.softplus(depth / 2e-3).mean()
        closing = -0.5 * (end - 1.0)
        factor = 1 + 0.4 * closing if closing > 0 else math.exp(0.4 * closing)
        return 0.7 * (end + 1.0) - 0.004 * 5e3 * float(ramp) * factor

    assert float(after[0, 0, 2]) == pytest.approx(brentq(balance, -1.0, 1.0), abs=1e-4)


def test_strong_friction_on_stiff_contacts_is_still_solved():
    """A rod that is pushed into the ground at a slant jams: friction alone lifts the normal impulse."""
    shapes = Shapes.of(
        [SPHERE, PLANE],
        [0, sim.WORLD],
        [(0.01, 0, 0)] * 2,
        pose=geometry.pose(
            torch.tensor([[0.3, 0.0, -0.5], [0.0, 0.0, 0.0]], dtype=F64), geometry.quat_identity(2, dtype=F64)
        ),
    )
    depth = torch.linspace(
        -0.05, 0.002 + 0.005, 50001, dtype=F64
    )  # to where the rod is at the start of the step
    stored = 1e6 * 2e-3 * float(torch.trapezoid(torch.nn.functional.softplus(depth / 2e-3), depth))
    for friction in (0.5, 1.5, 5.0):
        contact = sim.Contact(shapes, stiffness=1e6, friction=friction)
        velocity = still(1, (-3.0, 0.0, -1.0))
        inertia = (0.02 * UNIT)[None, None]
        after = settle(
            contact, at((0, 0, 0.508)), velocity, velocity, torch.ones(1, 1, dtype=F64), inertia, 0.01
        )
        gained = (after - velocity)[0, 0, :3]
        assert torch.isfinite(after).all() and gained[2] > 0
        assert gained[:2].norm() <= friction * gained[2] * (1 + 1e-9)
        energy = 0.5 * float((after[0, 0, :3] ** 2).sum() + 0.02 * (after[0, 0, 3:] ** 2).sum())
        assert energy < 0.5 * float((velocity**2).sum()) + stored
