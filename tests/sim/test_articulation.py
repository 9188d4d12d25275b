"""Articulated models through time: conserved quantities, exact solutions, gradients over long horizons."""

import math

import pytest
import torch
from torch import Tensor

import gradpath as gp
from gradpath import geometry, sim
from gradpath.errors import InputError, ShapeError

F64 = torch.float64


def pendulum(damping: float = 0.0) -> sim.Model:
    builder = sim.ModelBuilder("pendulum")
    builder.add_body(
        "rod",
        joint="hinge",
        axis=(0, 1, 0),
        mass=1.0,
        com=(0, 0, -0.5),
        inertia=(0.08, 0.08, 0.01),
        damping=damping,
    )
    builder.add_motor("rod", limit=5.0)
    return builder.build()


def cartpole() -> sim.Model:
    builder = sim.ModelBuilder("cartpole")
    builder.add_body("cart", joint="slide", axis=(1, 0, 0), mass=1.0, damping=0.1)
    builder.add_body(
        "pole",
        "cart",
        joint="hinge",
        axis=(0, 1, 0),
        mass=0.1,
        com=(0, 0, 0.5),
        inertia=(0.01, 0.01, 0.001),
        damping=0.02,
    )
    builder.add_motor("cart", limit=20.0)
    return builder.build()


def double_pendulum() -> sim.Model:
    builder = sim.ModelBuilder("double_pendulum")
    rod = {
        "joint": "hinge",
        "axis": (0, 1, 0),
        "mass": 1.0,
        "com": (0, 0, -0.5),
        "inertia": (0.08, 0.08, 0.01),
    }
    builder.add_body("upper", **rod)
    builder.add_body("lower", "upper", placement=(0, 0, -1), **rod)
    return builder.build()


def plate(inertia=(1.0, 2.0, 3.0), com=(0.0, 0.0, 0.0)) -> sim.Model:
    builder = sim.ModelBuilder("plate", gravity=(0, 0, 0))
    builder.add_body("plate", joint="free", mass=2.0, com=com, inertia=inertia)
    return builder.build()


def start(model: sim.Model, q=None, qd=None, batch: int = 1) -> dict[str, Tensor]:
    home = model.home if q is None else torch.tensor(q, dtype=F64)
    rates = torch.zeros(model.nv, dtype=F64) if qd is None else torch.tensor(qd, dtype=F64)
    return {"q": home.repeat(batch, 1), "qd": rates.repeat(batch, 1)}


def free_run(model: sim.Model, state: dict[str, Tensor], seconds: float, dt: float) -> dict[str, Tensor]:
    idle = torch.zeros(len(state["q"]), round(seconds / dt), model.nu, dtype=state["q"].dtype)
    return sim.simulate(model, state, idle, dt)


def energy(model: sim.Model, q: Tensor, qd: Tensor) -> Tensor:
    kinetic = 0.5 * torch.einsum("bi,bij,bj->b", qd, sim.mass_matrix(model, q), qd)
    poses = sim.forward_kinematics(model, q)
    centres = geometry.pose_apply(poses, model.com.expand(len(q), -1, 3))
    return kinetic - (model.mass[:, None] * centres * model.gravity).sum((1, 2))


@pytest.mark.parametrize("make, q", [(pendulum, [2.5]), (double_pendulum, [1.0, -0.5])])
def test_the_energy_of_a_free_pendulum_stays(make, q):
    model = make()
    state = start(model, q)
    motion = free_run(model, state, seconds=10.0, dt=0.005)
    lowest = energy(model, torch.zeros_like(state["q"]), torch.zeros_like(state["qd"]))
    begin = energy(model, **state) - lowest
    drift = (energy(model, motion["q"][0], motion["qd"][0]) - lowest) / begin - 1
    assert drift.abs().max() < 5e-3
    assert motion["q"][0].abs().max() > 0.5


def momentum(model: sim.Model, q: Tensor, qd: Tensor) -> Tensor:
    """Linear and angular momentum of one free body in the world, about its origin at the start."""
    turn, centre = q[:, 3:], q[:, :3]
    com = model.com.expand(len(q), 3)
    linear = model.mass * geometry.quat_rotate(turn, qd[:, :3] + torch.linalg.cross(qd[:, 3:], com))
    spin = geometry.quat_rotate(turn, torch.einsum("ij,bj->bi", model.inertia[0], qd[:, 3:]))
    where = centre + geometry.quat_rotate(turn, com)
    return torch.cat([linear, spin + torch.linalg.cross(where, linear)], 1)


@pytest.mark.parametrize("com", [(0.0, 0.0, 0.0), (0.2, -0.1, 0.3)])
def test_the_momentum_of_a_free_body_stays(com):
    model = plate(com=com)
    state = start(model, qd=[0.3, -0.2, 0.5, 1.0, 4.0, 2.0])
    motion = free_run(model, state, seconds=5.0, dt=0.001)
    before, after = momentum(model, **state), momentum(model, motion["q"][0], motion["qd"][0])
    assert ((after - before).norm(dim=-1) / before.norm()).max() < 5e-4


def test_a_body_that_spins_about_its_middle_axis_flips():
    """The theorem of Dzhanibekov: the rate about the middle axis reverses again and again, in equal times."""
    model = plate()
    motion = free_run(model, start(model, qd=[0, 0, 0, 1e-3, 5.0, 1e-3]), seconds=24.0, dt=0.002)
    spin = motion["qd"][0, :, 4]
    flips = ((spin[1:] * spin[:-1]) < 0).nonzero().flatten() * 0.002
    assert len(flips) >= 3
    times = flips.diff()
    assert (times.max() - times.min()) / times.mean() < 0.01
    assert spin.min() < -4.99 and spin.max() > 4.99


def test_a_symmetric_top_precesses_at_the_rate_of_theory():
    model = plate(inertia=(2.0, 2.0, 1.0))
    motion = free_run(model, start(model, qd=[0, 0, 0, 0.5, 0, 6.0]), seconds=2.0, dt=0.001)
    rate = (2.0 - 1.0) / 2.0 * 6.0  # of the transverse part in the frame of the body, backwards
    times = 0.001 * torch.arange(1, 2001, dtype=F64)
    torch.testing.assert_close(motion["qd"][0, :, 3], 0.5 * torch.cos(rate * times), atol=1e-4, rtol=0)
    torch.testing.assert_close(motion["qd"][0, :, 4], -0.5 * torch.sin(rate * times), atol=1e-4, rtol=0)


def test_small_swings_have_the_period_of_theory():
    model = pendulum()
    motion = free_run(model, start(model, [0.01]), seconds=5.0, dt=0.005)
    rate = math.sqrt(1.0 * 9.81 * 0.5 / (0.08 + 0.25))
    times = 0.005 * torch.arange(1, 1001, dtype=F64)
    torch.testing.assert_close(motion["q"][0, :, 0], 0.01 * torch.cos(rate * times), atol=2e-6, rtol=0)


def test_steps_are_of_second_order_and_substeps_are_shorter_steps():
    model = cartpole()
    state = start(model, [0.0, 2.0], [0.5, -1.0])
    control = torch.full((1, 8, 1), 3.0, dtype=F64)

    def end(substeps: int) -> Tensor:
        return torch.cat(list(sim.simulate(model, state, control, 0.05, substeps).values()), -1)[:, -1]

    reference = end(512)
    errors = [float((end(n) - reference).norm()) for n in (2, 4, 8)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(
        4, rel=0.1
    )
    finer = sim.simulate(model, state, control.repeat_interleave(2, 1), 0.025, 2)
    coarse = sim.simulate(model, state, control, 0.05, 4)
    torch.testing.assert_close(finer["q"][:, 1::2], coarse["q"], atol=1e-13, rtol=0)


def test_a_stiff_damper_is_stable():
    model = pendulum(damping=1e4)
    motion = free_run(model, start(model, [1.0], [30.0]), seconds=1.0, dt=0.01)
    assert motion["q"].abs().max() < 1.2


def test_free_fall_and_a_wrench_that_carries_the_weight():
    builder = sim.ModelBuilder("stone")
    builder.add_body("stone", joint="free", mass=2.0, inertia=(0.1, 0.1, 0.1))
    model = builder.build()
    state = start(model, qd=[1.0, 0, 0, 0, 0, 3.0])
    fallen = free_run(model, state, seconds=1.0, dt=0.01)
    assert fallen["q"][0, -1, 2].item() == pytest.approx(-0.5 * 9.81, abs=1e-9)
    lift = torch.zeros(1, 100, 1, 6, dtype=F64)
    lift[..., 2] = 2.0 * 9.81
    held = sim.simulate(model, state, torch.zeros(1, 100, 0, dtype=F64), 0.01, wrenches=lift)
    assert held["q"][0, -1, 2].abs() < 1e-12 and held["q"][0, -1, 0].item() == pytest.approx(1.0, abs=2e-3)


def test_a_servo_holds_and_its_limit_limits():
    builder = sim.ModelBuilder("arm", gravity=(0, 0, 0))
    builder.add_body("arm", joint="hinge", mass=1.0, inertia=(0.1, 0.1, 0.1))
    builder.add_servo("arm", stiffness=40.0, damping=4.0, limit=2.0)
    model = builder.build()
    goal = torch.full((1, 400, 1), 0.7, dtype=F64)
    motion = sim.simulate(model, start(model), goal, 0.01, substeps=4)
    assert motion["q"][0, -1, 0].item() == pytest.approx(0.7, abs=1e-6)
    assert motion["qd"][0, 0, 0].item() == pytest.approx(2.0 / 0.1 * 0.01, rel=1e-3)  # at its limit at first


def test_a_stop_stops_and_gives_energy_away():
    builder = sim.ModelBuilder("door", gravity=(0, 0, 0))
    builder.add_body("door", joint="hinge", mass=1.0, inertia=(1, 1, 1), lower=-0.5, upper=0.5)
    model = builder.build()
    motion = sim.simulate(model, start(model, qd=[1.5]), torch.zeros(1, 300, 0, dtype=F64), 0.005, substeps=4)
    q, qd = motion["q"][0, :, 0], motion["qd"][0, :, 0]
    assert 0.5 < q.max() < 0.53
    bounced = int((qd < 0).nonzero()[0])
    assert -0.9 < qd[bounced + 20] < -0.1
    inside = q[:20].abs() < 0.48
    torch.testing.assert_close(
        qd[:20][inside], torch.full_like(qd[:20][inside], 1.5)
    )  # no force away from it


def objective(model: sim.Model, q: Tensor, qd: Tensor, controls: Tensor) -> Tensor:
    motion = sim.simulate(model, {"q": q, "qd": qd}, controls, 0.02)
    weight = torch.cos(torch.arange(motion["q"].numel(), dtype=q.dtype)).reshape(motion["q"].shape)
    return (weight * motion["q"]).sum() + motion["qd"].square().mean() + motion["q"][:, -1].square().sum()


MASSES = ("mass", "com", "inertia", "damping", "gravity", "placement", "axis", "armature", "gear")


def cartpole_gradients(dtype: torch.dtype) -> dict[str, Tensor]:
    model = cartpole()
    leaves = {name: getattr(model, name).clone().requires_grad_() for name in MASSES}
    generator = torch.Generator().manual_seed(0)
    state = torch.tensor([[0.1, 3.0], [0.0, 2.6]], dtype=dtype)
    inputs = {
        "q": state,
        "qd": torch.tensor([[0.2, -0.1], [0.0, 0.3]], dtype=dtype),
        "controls": torch.randn(2, 100, 1, dtype=F64, generator=generator).to(dtype),
    }
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    total = objective(model.replace(**leaves), **inputs)
    every = leaves | inputs
    return dict(zip(every, torch.autograd.grad(total, list(every.values())), strict=True))


def test_gradients_over_a_hundred_steps_of_a_cartpole_match_differences():
    gradients = cartpole_gradients(F64)
    model, generator = cartpole(), torch.Generator().manual_seed(0)
    inputs = {
        "q": torch.tensor([[0.1, 3.0], [0.0, 2.6]], dtype=F64),
        "qd": torch.tensor([[0.2, -0.1], [0.0, 0.3]], dtype=F64),
        "controls": torch.randn(2, 100, 1, dtype=F64, generator=generator),
    }
    for name, gradient in gradients.items():
        value = inputs[name] if name in inputs else getattr(model, name)
        direction = torch.randn(value.shape, dtype=F64, generator=generator)
        if name == "placement":
            direction[:, 3:] = 0  # by the position alone: the step would leave the unit quaternions
        if name == "armature":
            direction = direction.abs()

        def along(step: float, name=name, value=value, direction=direction) -> Tensor:
            changed = value + step * direction
            if name in inputs:
                return objective(model, **(inputs | {name: changed}))
            return objective(model.replace(**{name: changed}), **inputs)

        h = 1e-4  # Richardson: of fourth order
        difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
        got = (gradient * direction).sum()
        assert abs(got - difference) <= 1e-8 * max(1.0, abs(difference)), name


def test_gradients_over_a_hundred_steps_agree_in_float32():
    double, single = cartpole_gradients(F64), cartpole_gradients(torch.float32)
    for name, gradient in double.items():
        assert (single[name].double() - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_gradient_through_single_steps_is_that_of_the_whole_motion():
    model = cartpole()
    controls = torch.linspace(-1, 1, 20, dtype=F64).reshape(1, 20, 1).requires_grad_()
    mass = model.mass.clone().requires_grad_()
    model = model.replace(mass=mass)
    state = start(model, [0.0, 2.0])
    (whole,) = (sim.simulate(model, state, controls, 0.02, 2)["q"][:, -1].sum(),)
    for t in range(20):
        state = sim.step(model, state, controls[:, t], 0.02, 2)
    torch.testing.assert_close(state["q"].sum(), whole, atol=1e-13, rtol=0)
    for a, b in zip(
        *(torch.autograd.grad(v, [controls, mass]) for v in (whole, state["q"].sum())), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_gradients_are_finite_at_rest():
    model = sim.samples.sample_model()
    state = {name: value.requires_grad_() for name, value in start(model, batch=2).items()}
    leaves = {name: value.clone().requires_grad_() for name, value in model.parameters().items()}
    control = torch.zeros(2, model.nu, dtype=F64, requires_grad=True)
    wrench = torch.zeros(2, len(model.joints), 6, dtype=F64, requires_grad=True)
    after = sim.step(model.replace(**leaves), state, control, 0.01, 2, wrench)
    inputs = [*state.values(), control, wrench, *leaves.values()]
    for gradient in torch.autograd.grad(after["q"].sum() + after["qd"].sum(), inputs, materialize_grads=True):
        assert torch.isfinite(gradient).all()


def test_parameters_may_differ_by_world():
    model = pendulum()
    masses = torch.tensor([[1.0], [2.0]], dtype=F64, requires_grad=True)
    both = sim.step(
        model.replace(mass=masses), start(model, [1.0], batch=2), torch.ones(2, 1, dtype=F64), 0.1
    )
    for world in range(2):
        alone = sim.step(
            model.replace(mass=masses[world]), start(model, [1.0]), torch.ones(1, 1, dtype=F64), 0.1
        )
        torch.testing.assert_close(both["q"][world], alone["q"][0])
    (gradient,) = torch.autograd.grad(both["q"][0].sum(), masses)
    assert gradient[0] != 0 and gradient[1] == 0


def test_threads_do_not_change_the_result():
    model = cartpole()
    state, controls = start(model, [0.0, 2.0], batch=5), torch.randn(5, 10, 1, dtype=F64)
    results = []
    for threads in (1, 3):
        gp.kernels.set_threads(threads)
        leaf = controls.clone().requires_grad_()
        end = sim.simulate(model, state, leaf, 0.02)["q"][:, -1].sum()
        results.append([end.detach(), *torch.autograd.grad(end, leaf)])
    gp.kernels.set_threads(None)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_stage_runs_in_a_rollout_and_learns():
    body = sim.Articulation(cartpole(), 0.02, 2, learnable=("mass",)).double()
    assert [name for name, _ in body.named_parameters()] == ["mass"]
    step = gp.Pipeline(body=body)
    rollout = gp.Rollout(step, length=10, carry={"state": "body.state"}, memory=3, sequences=("control",))
    state = body.home_state(3, dtype=F64)
    controls = torch.randn(10, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    trajectory = rollout(state, control=controls)
    assert trajectory["body.pose"].shape == (10, 3, 2, 7)
    trajectory["body.state.q"][-1].sum().backward()
    motion = sim.simulate(body.model, state, controls.transpose(0, 1), 0.02, 2)
    (expected,) = torch.autograd.grad(motion["q"][:, -1].sum(), body.mass)
    torch.testing.assert_close(trajectory["body.state.q"][-1], motion["q"][:, -1], atol=1e-12, rtol=0)
    torch.testing.assert_close(body.mass.grad, expected, atol=1e-12, rtol=1e-10)


def test_parameters_of_one_call_replace_those_of_the_stage():
    body = sim.Articulation(pendulum(), 0.1)
    state, control = body.home_state(2, dtype=F64), torch.ones(2, 1, dtype=F64)
    heavy = body(state, control, parameters={"mass": torch.tensor([[1.0], [9.0]], dtype=F64)})
    assert heavy["state"]["q"][0] > 1.5 * heavy["state"]["q"][1] > 0


BAD = {
    "expected shape (2, 1), got (2, 2)": lambda m, s, u: sim.step(m, s, u.repeat(1, 2), 0.1),
    "qd of model 'pendulum': expected shape (2, 1)": lambda m, s, u: sim.step(m, s | {"qd": s["qd"][:1]}, u, 0.1),
    "is torch.float32": lambda m, s, u: sim.step(m, s, u.float(), 0.1),
    "positive duration": lambda m, s, u: sim.step(m, s, u, 0.0),
    "at least 1, got 0": lambda m, s, u: sim.step(m, s, u, 0.1, 0),
    "controls of world 1 is": lambda m, s, u: sim.step(m, s, u * torch.tensor([[1.0], [math.nan]]), 0.1),
    "q of world 0 is": lambda m, s, u: sim.step(m, s | {"q": s["q"] * math.inf}, u, 0.1),
    "parameters for 3 worlds": lambda m, s, u: sim.step(m.replace(mass=torch.ones(3, 1)), s, u, 0.1),
    "wrenches for 2": lambda m, s, u: sim.simulate(
        m, s, u[:, None], 0.1, wrenches=torch.zeros(2, 2, 1, 6, dtype=F64)
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    model = pendulum()
    with pytest.raises((InputError, ShapeError)) as caught:
        BAD[message](model, start(model, [0.1], batch=2), torch.ones(2, 1, dtype=F64))
    assert message.replace("(2, 1), got (2, 2)", "(2, T, 1), got (2, 1, 2)") in str(caught.value)


def test_a_quaternion_that_is_no_rotation_is_named():
    model = plate()
    state = start(model, batch=2)
    state["q"][1, 6] = 1.2
    with pytest.raises(InputError, match=r"quaternion of joint 'plate' in world 1 .* norm 1"):
        sim.step(model, state, torch.zeros(2, 0, dtype=F64), 0.1)


def test_a_second_derivative_is_refused():
    model = pendulum()
    state = start(model, [0.3])
    control = torch.ones(1, 1, dtype=F64, requires_grad=True)
    q = sim.step(model, state, control, 0.1)["q"].sum()
    (gradient,) = torch.autograd.grad(q, control, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(gradient.sum(), control)
