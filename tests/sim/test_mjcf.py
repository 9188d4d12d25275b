"""Robots from MJCF files against MuJoCo."""

from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from gradpath import sim
from gradpath.errors import InputError
from gradpath.sim.contact_pairs import may_touch

FOLDER = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
F64 = torch.float64
ROBOTS = (
    "ant",
    "half_cheetah",
    "hopper",
    "humanoid",
    "reacher",
    "inverted_pendulum",
    "inverted_double_pendulum",
)


def reorder(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Quaternions of MuJoCo's coordinates from wxyz to xyzw."""
    q = qpos.copy()
    for joint in range(model.njnt):
        at = model.jnt_qposadr[joint] + (3 if model.jnt_type[joint] == 0 else 0)
        if model.jnt_type[joint] in (0, 1):
            q[at : at + 4] = np.roll(qpos[at : at + 4], -1)
    return q


def to_body(model: mujoco.MjModel, data: mujoco.MjData, rates: np.ndarray, accelerations: bool) -> np.ndarray:
    """The linear part of a free joint from world axes to those of the body."""
    rates = rates.copy()
    if model.jnt_type[0] == 0:
        rotation = data.xmat[model.jnt_bodyid[0]].reshape(3, 3)
        rates[:3] = rotation.T @ rates[:3]
        if accelerations:
            rates[:3] -= np.cross(data.qvel[3:6], rotation.T @ data.qvel[:3])
    return rates


def random_state(model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
    data.qpos[:] = 0.7 * rng.normal(size=model.nq)
    mujoco.mj_normalizeQuat(model, data.qpos)
    data.qvel[:] = rng.normal(size=model.nv)
    data.ctrl[:] = 0.8 * rng.normal(size=model.nu)  # some beyond its limits
    mujoco.mj_forward(model, data)


def compare(path: Path, states: int = 20) -> None:
    model, twin = sim.load(path), mujoco.MjModel.from_xml_path(str(path))
    off = mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_LIMIT
    twin.opt.disableflags |= off
    unlimited = model.replace(lower=model.lower.fill_(-torch.inf), upper=model.upper.fill_(torch.inf))
    data, rng = mujoco.MjData(twin), np.random.default_rng(0)
    for _ in range(states):
        random_state(twin, data, rng)
        q = torch.tensor(reorder(twin, data.qpos))[None]
        qd = torch.tensor(to_body(twin, data, data.qvel, accelerations=False))[None]
        tau = sim.joint_forces(unlimited, q, qd, torch.tensor(data.ctrl)[None])
        got = sim.forward_dynamics(unlimited, q, qd, tau)[0].numpy()
        expected = to_body(twin, data, data.qacc, accelerations=True)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        poses = sim.forward_kinematics(model, q)[0].numpy()
        for body, name in enumerate(model.body_names):
            index = mujoco.mj_name2id(twin, mujoco.mjtObj.mjOBJ_BODY, name)
            if index >= 0:
                np.testing.assert_allclose(poses[body, :3], data.xpos[index], atol=1e-12)
        mass = np.zeros((twin.nv, twin.nv))
        mujoco.mj_fullM(twin, data, mass)
        if twin.jnt_type[0] != 0:
            np.testing.assert_allclose(sim.mass_matrix(model, q)[0].numpy(), mass, atol=1e-9 * mass.max())


@pytest.mark.parametrize("name", ROBOTS)
def test_accelerations_and_poses_equal_mujoco(name):
    compare(FOLDER / f"{name}.xml")


MIXED = """
<mujoco>
  <option gravity="0.5 -1 -9.81"/>
  <default><geom density="800"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="base" pos="0.1 0.2 0.3" euler="20 30 40">
      <joint name="lift" type="slide" axis="1 2 3" ref="0.2" stiffness="30" springref="0.1" damping="2"/>
      <joint name="turn" type="hinge" axis="0 1 1" pos="0.1 0 0.2" ref="15" armature="0.3"/>
      <geom type="box" size="0.1 0.2 0.3" pos="0.05 0 0" friction="0.4" margin="0.03" gap="0.01"/>
      <body name="ball" pos="0 0 0.4"><joint name="socket" type="ball" pos="0 0.1 0" damping="0.5"/>
        <geom type="capsule" size="0.05 0.2" euler="30 0 0"/>
        <body name="weld" pos="0.2 0 0" euler="0 50 0"><geom type="cylinder" size="0.1 0.05"/><site name="tip"/></body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="hold" joint="turn" kp="20" kv="3" ctrlrange="-0.4 0.4" forcerange="-6 6"/>
    <motor name="push" joint="lift" gear="3"/>
  </actuator>
</mujoco>
"""


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "mixed.xml"
    path.write_text(MIXED)
    return path


def test_anchors_references_springs_servos_and_balls_equal_mujoco(mixed):
    compare(mixed)


def test_what_a_file_says_is_in_the_model(mixed):
    model = sim.load(mixed)
    assert model.joint_names == ("lift", "turn", "socket")
    assert model.body_names == ("base/lift", "base", "ball") and set(model.frames) == {"weld", "tip"}
    assert [actuator.name for actuator in model.actuators] == ["hold", "push"]
    assert model.force_range.tolist() == [[-6, 6], [-torch.inf, torch.inf]] and model.gear.tolist() == [1, 3]
    kinds = [kind.name for kind in model.shapes.kind]
    assert kinds == ["PLANE", "BOX", "CAPSULE", "CYLINDER"] and model.shapes.body == (sim.WORLD, 1, 2, 2)
    torch.testing.assert_close(model.shapes.size[1], torch.tensor([0.1, 0.2, 0.3], dtype=F64))
    assert model.shapes.friction.tolist() == [1.0, 0.4, 1.0, 1.0]
    assert model.shapes.margin == pytest.approx((0.0, 0.02, 0.0, 0.0))
    assert len(model.visuals) == 3 and len(sim.load(mixed, meshes=False).shapes) == 0
    assert model.home.tolist()[:2] == pytest.approx([0.2, np.deg2rad(15)])


REFUSED = {
    ("<option ", '<option density="1000" '): "fluid is not supported",
    (
        'type="ball" pos="0 0.1 0"',
        'type="ball" stiffness="3"',
    ): "joint 'socket' is a ball joint with a spring",
    ("<motor name", '<general dyntype="integrator" name'): "actuator 'push' is no motor or servo",
    ('type="cylinder" size="0.1 0.05"', 'type="ellipsoid" size="0.1 0.05 0.1"'): "is of type ellipsoid",
    (
        "</worldbody>",
        '</worldbody><equality><joint joint1="lift" joint2="turn"/></equality>',
    ): "equality constraint",
    ('joint="lift"', 'joint="nowhere"'): "MuJoCo's compiler refuses",
}


@pytest.mark.parametrize("change", REFUSED, ids=REFUSED.values())
def test_what_is_not_supported_is_named(mixed, change):
    mixed.write_text(MIXED.replace(*change))
    with pytest.raises(InputError, match=REFUSED[change]) as caught:
        sim.load(mixed)
    assert str(mixed) in str(caught.value)


@pytest.mark.parametrize("name", ROBOTS)
def test_shapes_may_touch_where_mujoco_lets_them(name):
    path = str(FOLDER / f"{name}.xml")
    twin, shapes = mujoco.MjModel.from_xml_path(path), sim.load(path).shapes
    geoms = [g for g in range(twin.ngeom) if twin.geom_contype[g] or twin.geom_conaffinity[g]]
    assert [twin.geom(g).name or f"geom{g}" for g in geoms] == list(shapes.names)
    allowed = may_touch(shapes)
    for i, first in enumerate(geoms):
        for j, second in enumerate(geoms):
            bits = twin.geom_contype[first] & twin.geom_conaffinity[second]
            bits |= twin.geom_contype[second] & twin.geom_conaffinity[first]
            a, b = (int(twin.body_weldid[twin.geom_bodyid[g]]) for g in (first, second))
            above = [int(twin.body_weldid[twin.body_parentid[body]]) for body in (a, b)]
            joined = 0 not in (a, b) and (above[0] == b or above[1] == a)
            assert bool(allowed[i, j]) == bool(bits and a != b and not joined), (i, j)
