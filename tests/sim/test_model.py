"""Models built in code and read from URDF files: order, merging, packing, and what is refused by name."""

import math
import os
from pathlib import Path

import pytest
import torch
import trimesh

from gradpath import geometry, kernels, sim
from gradpath.errors import InputError, ShapeError
from gradpath.sim.tree import BODY_NUMBERS, lay_out, pack

F64 = torch.float64
CPU = torch.device("cpu")
INERTIA = """<inertial><origin xyz="0 0 0.1" rpy="0.1 0 0"/><mass value="1.5"/>
    <inertia ixx="0.1" iyy="0.2" izz="0.3"/></inertial>"""

URDF = f"""
<robot name="toy">
  <link name="base"><collision name="foot"><geometry><box size="1 2 3"/></geometry></collision></link>
  <link name="upper">{INERTIA}
    <visual><origin xyz="0 0 1"/>
      <geometry><mesh filename="package://toy/meshes/part.stl" scale="0.1 0.1 0.1"/></geometry>
      <material name="red"><color rgba="1 0 0 1"/></material></visual>
    <collision><origin xyz="0.1 0 0"/><geometry><cylinder radius="0.2" length="0.6"/></geometry></collision></link>
  <link name="sensor">{INERTIA}<collision><geometry><sphere radius="0.05"/></geometry></collision></link>
  <link name="left">{INERTIA}</link>
  <link name="right">{INERTIA}</link>
  <joint name="b_shoulder" type="revolute"><parent link="base"/><child link="upper"/><origin xyz="0 0 1" rpy="0 0.5 0"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="2" effort="7" velocity="1"/>
    <dynamics damping="0.4" friction="0.1"/></joint>
  <joint name="c_mount" type="fixed"><parent link="upper"/><child link="sensor"/><origin xyz="0.3 0 0"/></joint>
  <joint name="z_left" type="prismatic"><parent link="upper"/><child link="left"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.1" effort="0" velocity="1"/></joint>
  <joint name="a_right" type="continuous"><parent link="upper"/><child link="right"/><axis xyz="0 0 2"/>
    <mimic joint="b_shoulder" multiplier="-2" offset="0.5"/></joint>
</robot>
"""


@pytest.fixture
def urdf(tmp_path):
    folder = tmp_path / "toy"
    (folder / "urdf").mkdir(parents=True)
    (folder / "meshes").mkdir()
    trimesh.creation.box().export(folder / "meshes" / "part.stl")
    path = folder / "urdf" / "toy.urdf"
    path.write_text(URDF)
    return path


def test_what_a_urdf_says_is_in_the_model(urdf):
    model = sim.load(urdf, mimic=True)
    assert model.name == "toy" and model.body_names == (
        "upper",
        "right",
        "left",
    )  # depth first, by joint name
    assert model.joint_names == ("b_shoulder", "z_left") and model.joints[1].mimics == "b_shoulder"
    assert (model.nq, model.nv, model.nu) == (2, 2, 2)
    assert model.damping.tolist() == [0.4, 0] and model.dry_friction.tolist() == [0.1, 0]
    assert model.lower.tolist() == [-1, 0] and model.upper.tolist() == [2, 0.1]
    assert model.force_range.tolist() == [[-7, 7], [-math.inf, math.inf]]
    assert model.ratio.tolist() == [1, -2, 1] and model.offset.tolist() == [0, 0.5, 0]
    assert model.mass.tolist() == [3.0, 1.5, 1.5]  # the sensor rides on the arm
    torch.testing.assert_close(model.com[0], torch.tensor([0.15, 0, 0.1], dtype=F64))
    assert model.shapes.body == (sim.WORLD, 0, 0) and model.shapes.names == ("foot", "", "")
    assert [kind.name for kind in model.shapes.kind] == ["BOX", "CYLINDER", "SPHERE"]
    assert model.shapes.size.tolist() == [[0.5, 1, 1.5], [0.2, 0.3, 0], [0.05, 0, 0]]
    torch.testing.assert_close(model.shapes.pose[2, :3], torch.tensor([0.3, 0, 0], dtype=F64))
    assert model.shapes.exclude == {(0, 1), (0, 2)}
    (visual,) = model.visuals
    assert visual.colour == (1, 0, 0, 1) and len(visual.mesh.read().faces) == 12
    assert visual.mesh.read() is visual.mesh.read()
    assert model.frame("sensor").body == 0 and model.frame("base").body == sim.WORLD
    assert "toy" in repr(model)


def test_a_floating_base_comes_first(urdf):
    model = sim.load(urdf, floating=True, mimic=True)
    assert model.joint_names[0] == "root_joint" and (model.nq, model.nv) == (9, 8)
    assert model.home.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_mesh_packages_are_found_or_passed(urdf, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere.urdf"
    moved.write_text(URDF)
    assert sim.load(moved).nv == 3  # a folder beside the file may be the package
    far = tmp_path / "deep" / "deeper"
    far.mkdir(parents=True)
    (far / "toy.urdf").write_text(URDF.replace("package://toy", "package://other"))
    with pytest.raises(InputError, match=r"package://other/meshes/part\.stl"):
        sim.load(far / "toy.urdf")
    assert sim.load(far / "toy.urdf", packages={"other": tmp_path / "toy"}).nv == 3
    assert sim.load(far / "toy.urdf", meshes=False).visuals == ()
    os.rename(tmp_path / "toy", tmp_path / "other")
    monkeypatch.setenv("ROS_PACKAGE_PATH", str(tmp_path))
    assert sim.load(far / "toy.urdf").nv == 3


REFUSED = {
    ("part.stl", "gone.stl"): r"link 'upper' names the mesh 'package://toy/meshes/gone.stl'.*meshes=False",
    (
        '<child link="left"/>',
        '<child link="upper"/>',
    ): "link 'upper' hangs on two joints, 'b_shoulder' and 'z_left'",
    ('<parent link="base"/>', '<parent link="left"/>'): "part of a loop of links",
    ('<parent link="base"/>', '<parent link="nowhere"/>'): "names the link 'nowhere'",
    ('<link name="right">', '<link name="lost"/><link name="right">'): "both hang on no joint",
    ('type="continuous"', 'type="planar"'): "'a_right' is of type 'planar'; write it as two prismatic",
    ('type="continuous"', 'type="screw"'): "'a_right' is of type 'screw'",
    (f'<link name="left">{INERTIA}</link>', '<link name="left"/>'): "'z_left' moves body 'left'.*no inertia",
    ('<mass value="1.5"/>', '<mass value="-1.5"/>'): "'upper' has the mass -1.5",
    ('<mass value="1.5"/>', '<mass value="nan"/>'): "'upper': a number is not finite",
    ('xyz="0 1 0"', 'xyz="0 0 0"'): "axis of joint 'b_shoulder' is zero",
    ('mimic joint="b_shoulder"', 'mimic joint="a_right"'): "'a_right' mimics itself",
    ('mimic joint="b_shoulder"', 'mimic joint="c_mount"'): "'a_right' mimics 'c_mount'",
    ('lower="-1" upper="2"', 'lower="3" upper="2"'): "'b_shoulder' has its lower limit above",
    ("</robot>", ""): "no URDF that yourdfpy can read",
    ('name="z_left"', 'name="b_shoulder"'): "two joints 'b_shoulder'",
}


@pytest.mark.parametrize("change", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_robot_is_refused_by_file_and_element(urdf, change):
    assert change[0] in URDF
    urdf.write_text(URDF.replace(*change))
    with pytest.raises(InputError, match=REFUSED[change]) as caught:
        sim.load(urdf, mimic=True)
    assert str(urdf) in str(caught.value)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        sim.load(tmp_path / "gone.urdf")
    (tmp_path / "robot.sdf").write_text("<sdf/>")
    with pytest.raises(InputError, match=r"\.urdf and \.xml"):
        sim.load(tmp_path / "robot.sdf")


def rod(builder: sim.ModelBuilder, name: str, parent: str | None = None, **options) -> None:
    values = {"joint": "hinge", "mass": 1.0, "inertia": (0.1, 0.1, 0.1)}
    builder.add_body(name, parent, **(values | options))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda b: rod(b, "a", "nobody"), "hangs on 'nobody'"),
        (lambda b: [rod(b, "a"), rod(b, "a")], "a body 'a' already"),
        (lambda b: rod(b, "a", joint="screw"), "a joint 'screw'"),
        (lambda b: rod(b, "a", axis=(0, 0)), "has shape"),
        (lambda b: rod(b, "a", placement=(0, 0, 0, 0, 0, 0, 2)), "quaternion needs norm 1"),
        (lambda b: rod(b, "a", damping=-1.0), "damping of joint 'a' is -1.0"),
        (lambda b: rod(b, "a", sparkle=1.0), "has no 'sparkle'"),
        (lambda b: rod(b, "a", joint="ball", stiffness=1.0), "stiffness is for hinges"),
        (lambda b: rod(b, "a", mass=0.0, inertia=(0, 0, 0)), "no inertia"),
        (lambda b: [rod(b, "a"), b.add_motor("b")], "joint 'b'"),
        (lambda b: [rod(b, "a"), b.add_shape("a", sim.ShapeKind.SPHERE, (0.0,))], "sizes are finite and positive"),
        (lambda b: [rod(b, "a"), b.add_shape("a", sim.ShapeKind.MESH)], "a mesh belongs to"),
        (lambda b: [rod(b, "a"), b.add_shape("b", sim.ShapeKind.SPHERE)], "'b', which is no body"),
    ],
)  # fmt: skip
def test_the_builder_refuses_what_no_robot_has(build, message):
    builder = sim.ModelBuilder("bad")
    with pytest.raises(InputError, match=message):
        build(builder)
        builder.build()


def test_a_massless_body_may_carry_others():
    builder = sim.ModelBuilder("gimbal")
    rod(builder, "outer", axis=(1, 0, 0), mass=0.0, inertia=(0, 0, 0))
    rod(builder, "inner", "outer", axis=(0, 1, 0))
    model = builder.build()
    q = torch.zeros(1, 2, dtype=F64)
    assert torch.isfinite(sim.forward_dynamics(model, q, q, q)).all()


def test_parameters_are_packed_once_while_nothing_changes():
    model = sim.samples.sample_model()
    first = pack(model, F64, CPU)
    assert pack(model, F64, CPU) is first and first.shape == (1, lay_out(model, CPU).parameters)
    changed = model.replace(mass=2 * model.mass)
    assert not torch.equal(pack(changed, F64, CPU), first)
    mass = model.mass.clone()
    own = model.replace(mass=mass)
    before = pack(own, F64, CPU).clone()
    mass[0] = 5.0  # in place
    after = pack(own, F64, CPU)
    assert (after != before).sum() == 1 and after[0, BODY_NUMBERS * 0 + 13] == 5.0
    per_world = model.replace(gravity=torch.zeros(4, 3, dtype=F64))
    assert pack(per_world, torch.float32, CPU).shape == (4, first.shape[1])
    assert lay_out(model, CPU) is lay_out(changed, CPU)


def test_gradients_reach_every_parameter_shared_or_per_world():
    model = sim.samples.sample_model()
    leaves = {name: value.clone().requires_grad_() for name, value in model.parameters().items()}
    packed = pack(model.replace(**leaves), torch.float32, CPU)
    weight = torch.arange(packed.numel(), dtype=torch.float32).reshape(packed.shape)
    for name, gradient in zip(
        leaves, torch.autograd.grad((packed * weight).sum(), list(leaves.values())), strict=True
    ):
        assert gradient.shape == leaves[name].shape and gradient.dtype == F64
    assert sorted(
        torch.cat([g.flatten() for g in [gradient]]).tolist()
    )  # the last one, gravity, is at the end
    assert gradient.tolist() == weight[0, -3:].tolist()


def test_replacing_checks_names_and_shapes():
    model = sim.samples.sample_model()
    with pytest.raises(InputError, match="has no 'masses'"):
        model.replace(masses=model.mass)
    with pytest.raises(ShapeError, match=r"mass: expected shape \(7,\)"):
        model.replace(mass=torch.ones(3))
    with pytest.raises(InputError, match="no joint 'elbow'"):
        model.joint("elbow")
    with pytest.raises(InputError, match="no body or frame 'elbow'"):
        model.frame("elbow")
    moved = model.map(lambda tensor: tensor.float())
    assert moved.mass.dtype == torch.float32 and moved.shapes.pose.dtype == torch.float32


def test_the_jacobian_refuses_an_unknown_body_and_has_gradients():
    model = sim.samples.sample_model()
    q = model.home.repeat(2, 1).requires_grad_()
    with pytest.raises(InputError, match="no body 'elbow'"):
        sim.jacobian(model, q, "elbow")
    assert torch.autograd.gradcheck(lambda v: sim.forward_kinematics(model, v)[:, 3, :3], q)
    (gradient,) = torch.autograd.grad(sim.jacobian(model, q, "rail").square().sum(), q)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_every_joint_kind_and_parameter_is_in_the_sample_of_the_registry():
    model = sim.samples.sample_model()
    assert {joint.kind for joint in model.joints} == set(sim.JointKind)
    assert any(joint.mimics for joint in model.joints)
    samples = kernels.registry["simulate"].samples(3)
    q = samples["q"]
    assert ((q[:, 7] < -0.4 + 0.3) | (q[:, 7] > 0.5 - 0.3)).any()  # within a stop
    norms = geometry.quat_normalize(q[:, 8:12]).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_source_of_the_model_is_where_errors_point(tmp_path):
    builder = sim.ModelBuilder("short", source=str(Path(tmp_path) / "file"))
    with pytest.raises(InputError, match="file"):
        rod(builder, "a", joint="screw")
