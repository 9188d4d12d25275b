import math
from pathlib import Path

import pytest
import torch

from gradpath import sim

gymnasium = pytest.importorskip("gymnasium")
mujoco = pytest.importorskip("mujoco")
ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"


def rest_with(name: str, start: list[float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of a robot at the start and where MuJoCo lets it rest after a minute; quaternions as ours are."""
    theirs = mujoco.MjModel.from_xml_path(str(ASSETS / f"{name}.xml"))
    data = mujoco.MjData(theirs)
    if start is not None:
        data.qpos[:] = start

    def ours() -> torch.Tensor:
        q = torch.tensor(data.qpos.copy())
        free = theirs.jnt_type[0] == 0
        return torch.cat([q[:3], q[4:7], q[3:4], q[7:]]) if free else q

    begin = ours()
    for _ in range(6000):  # its friction creeps, as ours does, until nothing pulls at the feet
        mujoco.mj_step(theirs, data)
    return begin, ours()


UPRIGHT_ANT = [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]


@pytest.mark.parametrize(
    ("name", "start", "stiffness", "steps"),
    [
        ("half_cheetah", None, 2e4, 400),
        pytest.param("ant", UPRIGHT_ANT, 2e3, 700, marks=pytest.mark.slow),
    ],
)
def test_robots_come_to_rest_as_in_mujoco(name, start, stiffness, steps):
    begin, theirs = rest_with(name, start)
    model = sim.load(str(ASSETS / f"{name}.xml"))
    robot = sim.Articulation(model, 0.05, 5, contact=sim.Contact(model.shapes, stiffness, 1.0))
    state = {"q": begin[None], "qd": torch.zeros(1, model.nv, dtype=torch.float64)}
    with torch.no_grad():
        for _ in range(steps):
            state = robot(state, torch.zeros(1, model.nu, dtype=torch.float64))["state"]
    difference = (state["q"][0] - theirs).abs()
    height = 2 if name == "ant" else 1
    assert difference[height] < 0.01  # [m]
    assert difference[height + 1 :].max() < math.radians(2.0)
    assert state["qd"].abs().max() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hopper", "humanoid"])
def test_robots_that_fall_come_to_rest_on_the_surface(name):
    model = sim.load(str(ASSETS / f"{name}.xml"))
    robot = sim.Articulation(model, 0.05, 25, contact=sim.Contact(model.shapes, 5e4, 1.0))
    state = robot.home_state(1, torch.float64)
    state["qd"] = state["qd"] + 0.1
    with torch.no_grad():
        for _ in range(120):
            after = robot(state, torch.zeros(1, model.nu, dtype=torch.float64))
            state = after["state"]
    points = robot.contact.points(after["pose"])
    depth = points.depth[points.weight > 0]
    assert state["qd"].abs().max() < 0.3
    assert (depth > -0.005).sum() >= 2 and depth.max() < 0.005


def ant_end(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A number for where an ant is after 20 steps of 5 substeps on the ground, shape (B,)."""
    q = inputs["q"]
    unit = q[:, 3:7] / torch.linalg.vector_norm(q[:, 3:7], dim=-1, keepdim=True)
    contact = sim.Contact(model.shapes, 3e3, 1.0, friction=inputs["friction"])
    driven = model.replace(mass=inputs["mass"], inertia=inputs["inertia"])
    state = {"q": torch.cat([q[:, :3], unit, q[:, 7:]], 1), "qd": inputs["qd"]}
    for control in inputs["control"].unbind(1):
        state = sim.contact_step(driven, contact, state, control, 0.05, 5)
    weights = torch.linspace(0.5, 1.5, model.nv, dtype=q.dtype)
    return state["q"][:, :3].sum(1) + state["q"][:, 7:].sum(1) + 0.1 * (state["qd"] * weights).sum(1)


def test_the_gradients_of_an_ant_on_the_ground_equal_differences():
    model = sim.load(str(ASSETS / "ant.xml"), meshes=True)
    generator = torch.Generator().manual_seed(0)
    start = [0, 0, 0.58, 0, 0, 0, 1, 0, 1, 0, -1, 0, -1, 0, 1]  # its feet are on the ground
    inputs = {
        "q": torch.tensor([start], dtype=torch.float64),
        "qd": 0.05 * torch.randn(1, model.nv, dtype=torch.float64, generator=generator),
        "control": 0.1 * torch.randn(1, 20, model.nu, dtype=torch.float64, generator=generator),
        "mass": model.mass[None],
        "inertia": model.inertia[None],
        "friction": model.shapes.friction[None],
    }

    def gradients(dtype):
        leaves = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
        return torch.autograd.grad(ant_end(model, leaves).sum(), list(leaves.values()))

    exact, single = gradients(torch.float64), gradients(torch.float32)
    for name, gradient, rough in zip(inputs, exact, single, strict=True):
        chosen = torch.randperm(gradient.numel(), generator=generator)[:8]
        steps = torch.tensor([1e-5, 1e-6, 1e-7, 1e-8], dtype=torch.float64)
        change = torch.zeros(len(steps), len(chosen), 2, gradient.numel(), dtype=torch.float64)
        for k, place in enumerate(chosen):
            change[:, k, 0, place], change[:, k, 1, place] = steps, -steps
        rows = change.flatten(0, 2)
        worlds = {
            key: value.expand(len(rows), *value.shape[1:]) for key, value in inputs.items() if key != name
        }
        worlds[name] = inputs[name] + rows.unflatten(1, inputs[name].shape[1:])
        with torch.no_grad():
            ends = ant_end(model, worlds).unflatten(0, change.shape[:3])
        differences = (ends[..., 0] - ends[..., 1]) / (2 * steps[:, None])
        found = gradient.flatten()[chosen]
        error = (differences - found).norm(dim=1) / differences.norm(dim=1)
        assert error.min() < 1e-4, name
        best = differences[error.argmin()]
        assert torch.nn.functional.cosine_similarity(best, found, dim=0) > 0.9999, name
        rough = rough.double().flatten()
        assert torch.nn.functional.cosine_similarity(rough, gradient.flatten(), dim=0) > 0.99, name
    pushed = inputs | {"control": inputs["control"] + 1e-3}
    assert torch.isfinite(ant_end(model, pushed)).all()
