"""What a robot feels, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

import gradpath as gp
from gradpath import geometry, sim
from gradpath.errors import InputError

F64 = torch.float64
G = sim.GRAVITY


def turned(*axis: float, angle: float, batch: int = 1) -> Tensor:
    rotation = geometry.quat_from_axis_angle(torch.tensor(axis, dtype=F64), torch.tensor(angle, dtype=F64))
    return geometry.pose(torch.zeros(3, dtype=F64), rotation).expand(batch, 7)


def sample(imu: sim.Imu, pose: Tensor, twist: Tensor, before: Tensor | None = None, **inputs):
    memory = imu.first_memory(twist if before is None else before)
    return imu.run({"pose": pose, "twist": twist, "memory": memory, **inputs})


def test_at_rest_an_accelerometer_reads_g_upwards():
    still = torch.zeros(1, 6, dtype=F64)
    out = sample(sim.Imu(0.01), turned(1.0, 0.0, 0.0, angle=0.0), still)
    torch.testing.assert_close(out["accelerometer"], torch.tensor([[0.0, 0.0, G]], dtype=F64))
    tilted = sample(sim.Imu(0.01), turned(1.0, 0.0, 0.0, angle=0.3), still)["accelerometer"]
    torch.testing.assert_close(tilted, G * torch.tensor([[0.0, math.sin(0.3), math.cos(0.3)]], dtype=F64))
    assert (out["gyroscope"] == 0).all()


def test_in_free_fall_it_reads_nothing():
    before = torch.tensor([[1.0, 0.0, -2.0, 0.0, 0.0, 0.0]], dtype=F64)
    after = before + torch.tensor([0.0, 0.0, -G * 0.01, 0.0, 0.0, 0.0], dtype=F64)
    out = sample(sim.Imu(0.01), turned(0.0, 1.0, 0.0, angle=0.5), after, before)
    torch.testing.assert_close(out["accelerometer"], torch.zeros(1, 3, dtype=F64), atol=1e-12, rtol=0)


def test_off_the_axis_of_a_turning_body_it_reads_the_centripetal_and_the_tangential_acceleration():
    mount = geometry.pose(torch.tensor([0.3, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])).double()
    pose = turned(0.0, 0.0, 1.0, angle=0.8)
    before = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 3.0]], dtype=F64)
    twist = before + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.05], dtype=F64)
    out = sample(sim.Imu(0.01, mount), pose, twist, before)
    expected = torch.tensor([[-0.3 * 3.05**2, 0.3 * 5.0, G]], dtype=F64)
    torch.testing.assert_close(out["accelerometer"], expected)
    torch.testing.assert_close(out["gyroscope"], torch.tensor([[0.0, 0.0, 3.05]], dtype=F64))
    given = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 5.0]], dtype=F64)
    same = sample(sim.Imu(0.01, mount), pose, twist, acceleration=given)
    torch.testing.assert_close(same["accelerometer"], expected)


def test_a_turned_mount_reads_in_its_own_axes():
    mount = turned(0.0, 1.0, 0.0, angle=math.pi / 2)[0]
    twist = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0, 3.0]], dtype=F64)
    out = sample(sim.Imu(0.01, mount), turned(1.0, 0.0, 0.0, angle=0.0), twist)
    torch.testing.assert_close(out["gyroscope"], torch.tensor([[-3.0, 2.0, 1.0]], dtype=F64))
    torch.testing.assert_close(
        out["accelerometer"], torch.tensor([[-G, 0.0, 0.0]], dtype=F64), atol=1e-12, rtol=0
    )


def test_the_accelerometer_of_a_pendulum_agrees_with_its_equation_of_motion():
    builder = sim.ModelBuilder("pendulum")
    builder.add_body("bob", joint="hinge", axis=(0, 1, 0), mass=1.0, com=(0, 0, -0.5), inertia=(1e-9,) * 3)
    model = builder.build()
    mount = geometry.pose(torch.tensor([0.0, 0.0, -0.5]), torch.tensor([0.0, 0.0, 0.0, 1.0])).double()
    state = {"q": torch.tensor([[1.0]], dtype=F64), "qd": torch.zeros(1, 1, dtype=F64)}
    dt, imu = 1e-3, sim.Imu(1e-3, mount)
    _, twist = sim.forward_kinematics(model, state["q"], state["qd"])
    memory = imu.first_memory(twist[:, 0])
    for _ in range(400):
        state = sim.step(model, state, torch.zeros(1, 0, dtype=F64), dt)
        pose, twist = sim.forward_kinematics(model, state["q"], state["qd"])
        out = imu(pose[:, 0], twist[:, 0], memory)
        memory = out["memory"]
    # A point mass on a rod is pulled along the rod only: by its weight and by what holds it on the circle.
    along = G * math.cos(state["q"].item()) + 0.5 * state["qd"].item() ** 2
    torch.testing.assert_close(
        out["accelerometer"], torch.tensor([[0.0, 0.0, along]], dtype=F64), atol=4e-2, rtol=0
    )


def test_noise_has_its_density_and_the_bias_walks():
    imu = sim.Imu(
        0.01, accelerometer_noise=0.02, gyroscope_noise=0.003, accelerometer_walk=0.1, gyroscope_walk=0.01
    )
    batch, steps = 4000, 25
    twist = torch.zeros(batch, 6, dtype=F64)
    memory, generator = imu.first_memory(twist), torch.Generator().manual_seed(0)
    pose = turned(1.0, 0.0, 0.0, angle=0.0, batch=batch)
    first = imu.run({"pose": pose, "twist": twist, "memory": memory, "generator": generator})
    white = first["accelerometer"] - torch.tensor([0.0, 0.0, G], dtype=F64)
    assert white.std().item() == pytest.approx(0.02 / math.sqrt(0.01), rel=0.03)
    assert first["gyroscope"].std().item() == pytest.approx(0.003 / math.sqrt(0.01), rel=0.03)
    for _ in range(steps):
        memory = imu(pose, twist, memory, generator=generator)["memory"]
    assert memory["bias"][:, :3].std().item() == pytest.approx(0.1 * math.sqrt(0.25), rel=0.03)
    assert memory["bias"][:, 3:].std().item() == pytest.approx(0.01 * math.sqrt(0.25), rel=0.03)
    constant = torch.arange(6.0, dtype=F64).expand(batch, 6)
    biased = imu(pose, twist, {"twist": twist, "bias": constant})
    torch.testing.assert_close(biased["gyroscope"], constant[:, 3:])


def test_gradients_of_the_sensors_equal_differences():
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    pose = geometry.pose(random(2, 3), geometry.quat_normalize(random(2, 4)))
    mount = turned(0.6, 0.0, 0.8, angle=0.4)[0] + torch.tensor([0.1, 0.2, 0.3, 0, 0, 0, 0], dtype=F64)
    imu = sim.Imu(0.1, mount)

    def feel(turn, twist, before, bias):
        rotation = geometry.quat_multiply(pose[:, 3:], geometry.quat_exp(turn))
        out = imu(geometry.pose(pose[:, :3], rotation), twist, {"twist": before, "bias": bias})
        return out["accelerometer"], out["gyroscope"]

    inputs = [0.1 * random(2, 3), random(2, 6), random(2, 6), random(2, 6)]
    assert torch.autograd.gradcheck(feel, [x.requires_grad_() for x in inputs])
    touch = sim.ContactForces([1, 0])

    def press(wrench, turn):
        rotation = geometry.quat_multiply(pose[None, :, 3:], geometry.quat_exp(turn))
        return touch(wrench, geometry.pose(pose[None, :, :3], rotation))

    inputs = [random(1, 2, 6), 0.1 * random(1, 2, 3)]
    assert torch.autograd.gradcheck(press, [x.requires_grad_() for x in inputs])


def arm() -> sim.Model:
    builder = sim.ModelBuilder("arm")
    builder.add_body("base", joint="free", mass=1.0)
    builder.add_body("lift", "base", joint="slide", axis=(0, 0, 1), mass=1.0, inertia=(0.1,) * 3)
    builder.add_body("shoulder", "lift", joint="ball", mass=1.0, inertia=(0.1,) * 3)
    builder.add_body("elbow", "shoulder", joint="hinge", axis=(0, 1, 0), mass=1.0, inertia=(0.1,) * 3)
    return builder.build()


def test_encoders_count_the_positions_of_hinges_and_slides():
    model = arm()
    encoders = sim.JointEncoders(model, resolution=0.25)
    assert encoders.names == ("lift", "elbow")
    q = torch.arange(model.nq, dtype=F64).expand(2, -1) * 0.1
    q = q.clone().requires_grad_()
    with gp.mode("hard"):
        torch.testing.assert_close(encoders(q), torch.tensor([[0.75, 1.25]], dtype=F64).expand(2, 2))
    with gp.mode("straight_through"):
        counted = encoders.run({"q": q})["position"]
    torch.testing.assert_close(counted, torch.tensor([[0.75, 1.25]], dtype=F64).expand(2, 2))
    (gradient,) = torch.autograd.grad(counted.sum(), q)
    assert (gradient[:, encoders.places] > 0).all() and (gradient != 0).sum() == 4
    assert encoders.contract.gradient == "relaxed"


def test_encoders_without_resolution_pass_positions_on_with_noise_on_demand():
    model = arm()
    encoders = sim.JointEncoders(model, noise=0.05)
    q = torch.zeros(5000, model.nq, dtype=F64)
    assert encoders.contract.gradient == "exact" and (encoders(q) == 0).all()
    noisy = encoders.run({"q": q, "generator": torch.Generator().manual_seed(0)})["position"]
    assert noisy.std().item() == pytest.approx(0.05, rel=0.03)
    assert torch.equal(noisy, encoders(q, torch.Generator().manual_seed(0)))


def test_a_resting_ball_presses_with_its_weight():
    shapes = sim.Shapes.of(
        [sim.ShapeKind.SPHERE, sim.ShapeKind.PLANE], [0, sim.WORLD], [[0.1, 0, 0], [0, 0, 0]]
    )
    contact = sim.Contact(shapes, stiffness=1e4)
    touch = sim.ContactForces([0])
    pose = turned(1.0, 0.0, 0.0, angle=math.pi / 2).reshape(1, 1, 7).clone()
    pose[0, 0, 2] = 0.0995
    wrench = contact.wrenches(pose, torch.zeros(1, 1, 6, dtype=F64))
    force, torque = touch.run({"wrench": wrench, "pose": pose}).values()
    up = wrench[0, 0, 2].item()
    assert up > 1.0
    torch.testing.assert_close(force[0, 0], torch.tensor([0.0, up, 0.0], dtype=F64), atol=1e-9, rtol=0)
    torch.testing.assert_close(torque, torch.zeros(1, 1, 3, dtype=F64), atol=1e-9, rtol=0)


def test_contact_forces_have_noise_on_demand():
    touch = sim.ContactForces([1], force_noise=2.0, torque_noise=0.1)
    wrench, pose = torch.zeros(4000, 3, 6, dtype=F64), geometry.pose_identity(4000, 3, dtype=F64)
    inputs = {"wrench": wrench, "pose": pose, "generator": torch.Generator().manual_seed(0)}
    force, torque = touch.run(inputs).values()
    assert force.std().item() == pytest.approx(2.0, rel=0.03)
    assert torque.std().item() == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sim.Imu(0.0), "imu: dt is a positive time"),
        (lambda: sim.Imu(0.1, torch.zeros(7)), "imu: mount: the pose"),
        (lambda: sim.Imu(0.1, gyroscope_noise=-1.0), "imu: noise is zero or more"),
        (lambda: sim.JointEncoders(sim.ModelBuilder("rock").build()), "model 'rock' has no hinge or slide"),
        (lambda: sim.JointEncoders(arm(), resolution=-0.1), "resolution and noise are zero or more"),
        (lambda: sim.ContactForces([]), "expected indices of bodies, from 0"),
        (lambda: sim.ContactForces([sim.WORLD]), "expected indices of bodies, from 0"),
        (lambda: sim.ContactForces([0], force_noise=math.nan), "noise is zero or more"),
    ],
)
def test_bad_sensors_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_sensor_on_a_body_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="body 5 is not among the 2"):
        sim.ContactForces([5])(torch.zeros(1, 2, 6), geometry.pose_identity(1, 2))
