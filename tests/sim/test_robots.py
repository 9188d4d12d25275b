"""Kinematics and dynamics of the robots of example-robot-data against Pinocchio: values and analytic derivatives."""

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pinocchio as pin
import pytest
import torch
from torch import Tensor

from gradpath import geometry, sim
from gradpath.errors import InputError

FOLDER = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
FOLDER = FOLDER / "site-packages/cmeel.prefix/share/example-robot-data/robots"
F64 = torch.float64
STATES = 100

# Arms, hands, quadrupeds, bipeds, humanoids, flying arms and mobile manipulators; whether the root floats.
ROBOTS = {
    "panda_description/urdf/panda.urdf": False,
    "ur_description/urdf/ur5_robot.urdf": False,
    "kinova_description/robots/kinova.urdf": False,
    "xarm_description/urdf/xarm7.urdf": False,
    "double_pendulum_description/urdf/double_pendulum_continuous.urdf": False,
    "allegro_hand_description/urdf/allegro_left_hand.urdf": False,
    "so_arm_description/urdf/so101.urdf": False,
    "tiago_description/robots/tiago.urdf": False,
    "baxter_description/urdf/baxter.urdf": False,
    "pr2_description/urdf/pr2.urdf": False,
    "solo_description/robots/solo12.urdf": True,
    "go1_description/urdf/go1.urdf": True,
    "anymal_c_simple_description/urdf/anymal.urdf": True,
    "bolt_description/robots/bolt.urdf": True,
    "g1_description/urdf/g1_29dof_rev_1_0.urdf": True,
    "talos_data/robots/talos_reduced.urdf": True,
    "simple_humanoid_description/urdf/simple_humanoid.urdf": True,
    "borinot_description/urdf/borinot_flying_arm_2.urdf": True,
    "hextilt_description/urdf/hextilt_flying_arm_5.urdf": True,
    "iris_description/robots/iris.urdf": True,
}


@functools.cache
def load(name: str, floating: bool) -> tuple[sim.Model, pin.Model]:
    path = str(FOLDER / name)
    root = [pin.JointModelFreeFlyer()] if floating else []
    return sim.load(path, floating=floating, mimic=True), pin.buildModelFromUrdf(path, *root, mimic=True)


def random_coordinates(model: sim.Model, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q = 4 * torch.rand(batch, model.nq, dtype=F64, generator=generator) - 2
    if model.joints and model.joints[0].kind == sim.JointKind.FREE:
        q[:, 3:7] = geometry.quat_normalize(torch.randn(batch, 4, dtype=F64, generator=generator))
    return q


def random_rates(model: sim.Model, batch: int, seed: int) -> Tensor:
    return torch.randn(batch, model.nv, dtype=F64, generator=torch.Generator().manual_seed(seed))


def to_pinocchio(model: sim.Model, twin: pin.Model, q: Tensor) -> list[np.ndarray]:
    """Pinocchio has a cosine and a sine for what has no limits; the order is the same."""
    rows = np.zeros((len(q), twin.nq))
    for joint in model.joints:
        if joint.mimics is None:
            other = twin.joints[twin.getJointId(joint.name)]
            values = q[:, joint.q_start : joint.q_start + joint.kind.coordinates].numpy()
            if other.nq == 2:
                values = np.concatenate([np.cos(values), np.sin(values)], 1)
            rows[:, other.idx_q : other.idx_q + other.nq] = values
    return list(rows)


def tangent(model: sim.Model, q: Tensor, gradient: Tensor) -> Tensor:
    """Gradient with respect to a small motion in the order of qd, from that with respect to q."""
    parts = []
    for joint in model.joints:
        g = gradient[:, joint.q_start : joint.q_start + joint.kind.coordinates]
        if joint.mimics is not None:
            continue
        if joint.kind == sim.JointKind.FREE:
            back = geometry.quat_conjugate(q[:, joint.q_start + 3 : joint.q_start + 7])
            parts += [
                geometry.quat_rotate(back, g[:, :3]),
                0.5 * geometry.quat_multiply(back, g[:, 3:])[:, :3],
            ]
        else:
            parts.append(g)
    return torch.cat(parts, 1)


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest error of a row, relative to its largest number."""
    flat, reference = got.double().flatten(1), expected.flatten(1)
    return float(((flat - reference).abs().amax(1) / reference.abs().amax(1)).max())


def states(name: str):
    model, twin = load(name, ROBOTS[name])
    q = random_coordinates(model, STATES, seed=0)
    return model, twin, q, random_rates(model, STATES, seed=1), random_rates(model, STATES, seed=2)


def expected_mass(twin: pin.Model, data: pin.Data, q: np.ndarray) -> np.ndarray:
    upper = np.triu(pin.crba(twin, data, q))
    return upper + np.triu(upper, 1).T


def follows(model: sim.Model) -> bool:
    return any(joint.mimics for joint in model.joints)


NAMES = pytest.mark.parametrize("name", [pytest.param(n, id=Path(n).stem) for n in ROBOTS])


@NAMES
def test_values_equal_pinocchio(name):
    model, twin, q, qd, qdd = states(name)
    data, rows = twin.createData(), to_pinocchio(model, twin, q)
    assert model.nv == twin.nv
    names = [
        n
        for n, j in zip(list(twin.names)[1:], list(twin.joints)[1:], strict=True)
        if j.nv > 0 and "Mimic" not in j.shortname()
    ]
    assert list(model.joint_names) == names

    tau = np.stack(
        [pin.rnea(twin, data, a, b.numpy(), c.numpy()) for a, b, c in zip(rows, qd, qdd, strict=True)]
    )
    assert relative(sim.inverse_dynamics(model, q, qd, qdd), torch.tensor(tau)) < 1e-9
    mass = np.stack([expected_mass(twin, data, a) for a in rows])
    assert relative(sim.mass_matrix(model, q), torch.tensor(mass)) < 1e-9

    forces = torch.tensor(tau) + random_rates(model, STATES, seed=3)
    if follows(model):  # Pinocchio's articulated body algorithm knows no followers
        bias = [pin.rnea(twin, data, a, b.numpy(), 0 * b.numpy()) for a, b in zip(rows, qd, strict=True)]
        found = np.linalg.solve(mass, (forces.numpy() - np.stack(bias))[..., None])[..., 0]
    else:
        triples = zip(rows, qd, forces, strict=True)
        found = np.stack([pin.aba(twin, data, a, b.numpy(), c.numpy()) for a, b, c in triples])
    assert relative(sim.forward_dynamics(model, q, qd, forces), torch.tensor(found)) < 1e-9


@NAMES
def test_poses_and_jacobians_equal_pinocchio(name):
    model, twin, q, qd, _ = states(name)
    data, rows = twin.createData(), to_pinocchio(model, twin, q)
    poses, twists = sim.forward_kinematics(model, q, qd)
    ids = [twin.getJointId(joint.name) for joint in model.joints]
    for world, (row, rate) in enumerate(zip(rows, qd, strict=True)):
        pin.forwardKinematics(twin, data, row, rate.numpy())
        for body, index in enumerate(ids):
            expected = pin.SE3ToXYZQUAT(data.oMi[index])
            got = poses[world, body].numpy()
            expected[3:] *= np.sign(expected[3:] @ got[3:])
            np.testing.assert_allclose(got, expected, atol=1e-9, rtol=0)
            if not follows(model):
                twist = pin.getVelocity(twin, data, index, pin.LOCAL_WORLD_ALIGNED).vector
                np.testing.assert_allclose(
                    twists[world, body].numpy(), twist, atol=1e-9 * (1 + np.abs(twist).max())
                )
    last = len(model.joints) - 1
    jacobian = sim.jacobian(model, q, model.body_names[last])
    torch.testing.assert_close(
        torch.einsum("bij,bj->bi", jacobian, qd), twists[:, last], atol=1e-9, rtol=1e-9
    )


@NAMES
def test_gradients_equal_the_analytic_derivatives_of_pinocchio(name):
    model, twin, q, qd, qdd = states(name)
    if follows(model):  # their gradients are those of the registry's sample robot
        model = sim.load(FOLDER / name, floating=ROBOTS[name])
        twin = pin.buildModelFromUrdf(str(FOLDER / name))
        q, qd, qdd = (
            random_coordinates(model, STATES, 0),
            random_rates(model, STATES, 1),
            random_rates(model, STATES, 2),
        )
    data, rows = twin.createData(), to_pinocchio(model, twin, q)
    seed = random_rates(model, STATES, seed=4)
    tau = sim.inverse_dynamics(model, q, qd, qdd)
    for function, last in ((sim.inverse_dynamics, qdd), (sim.forward_dynamics, tau)):
        leaves = [value.clone().requires_grad_() for value in (q, qd, last)]
        gradients = torch.autograd.grad((function(model, *leaves) * seed).sum(), leaves)
        got = [tangent(model, q, gradients[0]), *gradients[1:]]
        expected: list[list[np.ndarray]] = [[], [], []]
        for row, rate, value, weight in zip(rows, qd, last, seed, strict=True):
            arguments = (twin, data, row, rate.numpy(), value.numpy())
            if function is sim.inverse_dynamics:
                pin.computeRNEADerivatives(*arguments)
                parts = (data.dtau_dq, data.dtau_dv, np.triu(data.M) + np.triu(data.M, 1).T)
            else:
                pin.computeABADerivatives(*arguments)
                parts = (data.ddq_dq, data.ddq_dv, np.triu(data.Minv) + np.triu(data.Minv, 1).T)
            for column, part in zip(expected, parts, strict=True):
                column.append(weight.numpy() @ part)
        for ours, theirs in zip(got, expected, strict=True):
            assert relative(ours, torch.tensor(np.stack(theirs))) < 1e-8


@NAMES
def test_float32_is_as_close_as_it_can_be(name):
    model, _, q, qd, qdd = states(name)
    single = [value.float() for value in (q, qd, qdd)]
    exact = [value.double() for value in single]
    for function, count in ((sim.forward_kinematics, 1), (sim.mass_matrix, 1), (sim.inverse_dynamics, 3)):
        assert relative(function(model, *single[:count]), function(model, *exact[:count])) < 1e-4
    tau = sim.inverse_dynamics(model, *exact).float()
    found = sim.forward_dynamics(model, single[0], single[1], tau)
    residual = sim.inverse_dynamics(model, exact[0], exact[1], found.double()) - tau
    assert float((residual.abs().amax(1) / tau.abs().amax(1)).max()) < 1e-4


def test_a_follower_moves_with_its_leader():
    model, _ = load("panda_description/urdf/panda.urdf", False)
    with pytest.warns(
        UserWarning, match="'panda_finger_joint2' mimics 'panda_finger_joint1' and moves by itself"
    ):
        free = sim.load(FOLDER / "panda_description/urdf/panda.urdf")
    assert (model.nv, free.nv, len(model.joints)) == (8, 9, 9)
    q = random_coordinates(model, 3, seed=5)
    both = torch.cat([q, q[:, 7:]], 1)
    torch.testing.assert_close(sim.forward_kinematics(model, q), sim.forward_kinematics(free, both))


def test_locked_joints_stand_still_as_in_pinocchios_reduced_model(tmp_path):
    path = FOLDER / "panda_description/urdf/panda.urdf"
    places = {"panda_joint2": 0.4, "panda_finger_joint1": 0.04}
    model = sim.load(path, mimic=True, meshes=False, locked=places)
    full = pin.buildModelFromUrdf(str(path))
    q = pin.neutral(full)
    for name, value in {**places, "panda_finger_joint2": 0.04}.items():  # the second finger follows the first
        q[full.joints[full.getJointId(name)].idx_q] = value
    locked = [full.getJointId(name) for name in (*places, "panda_finger_joint2")]
    reduced = pin.buildReducedModel(full, locked, q)
    assert list(model.joint_names) == list(reduced.names)[1:]
    batch = random_coordinates(model, 5, 0)
    qd, qdd = (
        torch.randn(5, model.nv, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    tau = sim.inverse_dynamics(model, batch, qd, qdd)
    data = reduced.createData()
    for row in range(5):
        expected = pin.rnea(reduced, data, batch[row].numpy(), qd[row].numpy(), qdd[row].numpy())
        np.testing.assert_allclose(tau[row], expected, rtol=0, atol=1e-9)
    for wrong, message in (
        ({"panda_joint8": 0.0}, "no hinge or slide"),
        ({"panda_joint2": math.nan}, "finite place"),
    ):
        with pytest.raises(InputError, match=message):
            sim.load(path, meshes=False, locked=wrong)
    other = tmp_path / "robot.xml"
    other.write_text("<mujoco/>")
    with pytest.raises(InputError, match="URDF files only"):
        sim.load(other, locked=places)


def test_bodies_behind_fixed_joints_are_merged_or_kept_with_the_same_motion():
    path = FOLDER / "panda_description/urdf/panda.urdf"
    merged, kept = sim.load(path, mimic=True), sim.load(path, mimic=True, merge_fixed=False)
    assert len(kept.joints) > len(merged.joints) and kept.nv == merged.nv
    q, qd, tau = random_coordinates(merged, 4, 0), random_rates(merged, 4, 1), random_rates(merged, 4, 2)
    torch.testing.assert_close(
        sim.forward_dynamics(kept, q, qd, tau), sim.forward_dynamics(merged, q, qd, tau), atol=1e-9, rtol=1e-9
    )
    frame, body = merged.frame("panda_hand"), kept.body_names.index("panda_hand")
    poses = sim.forward_kinematics(merged, q)[:, frame.body]
    placed = geometry.pose_compose(poses, frame.pose.expand(4, 7))
    torch.testing.assert_close(placed, sim.forward_kinematics(kept, q)[:, body], atol=1e-12, rtol=0)


REFUSED = {
    "romeo_description/urdf/romeo.urdf": "inertia",
    "alex_description/urdf/alex_psyonic_hands.urdf": "mimics 'index_q1'",
    "ur_description/urdf/ur3.urdf": "no URDF",
    "romeo_description/urdf/romeo_laas_small.urdf": "names the mesh",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*moves by itself")
def test_every_robot_of_the_package_loads_and_equals_pinocchio():
    paths = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("**/*.urdf"))
    assert len(paths) >= 60
    for path in map(str, paths):
        if path in REFUSED:
            with pytest.raises(InputError, match=REFUSED[path]):
                sim.load(FOLDER / path, mimic=True)
            continue
        for floating in (False, True):
            model = sim.load(FOLDER / path, floating=floating)
            root = [pin.JointModelFreeFlyer()] if floating else []
            twin = pin.buildModelFromUrdf(str(FOLDER / path), *root)
            if model.nv == 0:
                continue
            q, qd, qdd = (
                random_coordinates(model, 10, 0),
                random_rates(model, 10, 1),
                random_rates(model, 10, 2),
            )
            data, rows = twin.createData(), to_pinocchio(model, twin, q)
            triples = zip(rows, qd, qdd, strict=True)
            tau = torch.tensor(
                np.stack([pin.rnea(twin, data, a, b.numpy(), c.numpy()) for a, b, c in triples])
            )
            assert relative(sim.inverse_dynamics(model, q, qd, qdd), tau) < 1e-9, path
            back = sim.inverse_dynamics(model, q, qd, sim.forward_dynamics(model, q, qd, tau))
            assert relative(back, tau) < 1e-9, path
