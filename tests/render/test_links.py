"""Robots in pictures: links where kinematics has them, in the colours of their files, and cameras in hands."""

import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image as Picture

import gradpath as gp
from gradpath import geometry, sim
from gradpath.bodies import Frame
from gradpath.errors import InputError, ShapeError
from gradpath.meshes import TriangleMesh
from gradpath.render import LOOKING_AHEAD, Camera, DepthCamera, DirectionalLight, Look, Scene

F64 = torch.float64
SIZE = {"height": 18, "width": 24, "field_of_view": 1.0}
EYE = geometry.look_at(
    torch.tensor([[0.1, -3.0, 0.2]], dtype=F64), torch.tensor([[0.0, 0.0, 0.1]], dtype=F64)
)
FORWARD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # the camera's own axes


@pytest.fixture
def double(request):
    torch.set_default_dtype(F64)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))


def arm() -> sim.Model:
    """Two links, a post that does not move, and a flange behind a fixed joint."""
    builder = sim.ModelBuilder("arm", gravity=(0, 0, 0))
    solid = {"mass": 1.0, "com": (0.3, 0, 0), "inertia": (0.01, 0.05, 0.05)}
    builder.add_body("upper", joint="hinge", axis=(0, 1, 0), placement=(-0.4, 0, 0.1), **solid)
    builder.add_body("lower", "upper", joint="hinge", axis=(0, 0.6, 0.8), placement=(0.6, 0, 0), **solid)
    builder.add_body("flange", "lower", placement=(0.6, 0.0, 0.05, 0, 0, math.sin(0.1), math.cos(0.1)))
    box = TriangleMesh.box()
    builder.add_visual(None, box, pose=(-0.4, 0.3, -0.6), scale=(0.1, 0.1, 0.6), colour=(0, 0, 1, 1))
    builder.add_visual("upper", box, pose=(0.3, 0, 0), scale=(0.3, 0.11, 0.09), colour=(1, 0, 0, 1))
    builder.add_visual("upper", box, pose=(0.0, -0.2, 0), scale=(0.07, 0.1, 0.08), colour=(1, 1, 0, 1))
    builder.add_visual(
        "lower", TriangleMesh.icosphere(1), pose=(0.3, 0, 0), scale=(0.3, 0.13, 0.1), colour=(0, 1, 0, 1)
    )
    builder.add_visual("lower", box, colour=(1, 1, 1, 0))  # invisible
    for joint in ("upper", "lower"):
        builder.add_motor(joint)
    return builder.build()


def test_links_are_drawn_where_kinematics_has_them(double):
    """The same picture as of meshes that are placed by hand; classes and instances tell links from obstacles."""
    model = arm()
    q = torch.tensor([[0.4, -0.9], [-0.3, 0.5]], dtype=F64)
    poses = sim.forward_kinematics(model, q)
    ball, place = TriangleMesh.icosphere(1), geometry.pose_identity(2, 1, dtype=F64)
    place[..., :3] = torch.tensor([0.6, 0.4, -0.4])
    obstacles = {"pose": place, "scale": torch.full((2, 1, 3), 0.3, dtype=F64)}
    scene = Scene([ball], links=model.visuals)
    assert (scene.placed, scene.bodies, scene.instances) == (1, (sim.WORLD, 0, 1), 4)
    assert scene.kind.tolist() == [0, 1, 1, 1]
    camera = Camera(scene, ("rgb", "depth", "instance", "class"), mounts=FORWARD, lights=(), **SIZE)
    images = camera.run({"pose": EYE.expand(2, 7), "obstacles": obstacles, "bodies": poses})

    shown = [visual for visual in model.visuals if visual.colour[3] > 0]
    by_hand = Scene([ball, *(visual.mesh for visual in shown)])
    still = geometry.pose_identity(2, 1, dtype=F64)
    links = [
        geometry.pose_compose(torch.cat([still, poses], 1)[:, [visual.body + 1]], visual.pose)
        for visual in shown
    ]
    scales = [visual.scale.expand(2, 1, 3) for visual in shown]
    everything = {
        "pose": torch.cat([place, *links], 1),
        "scale": torch.cat([obstacles["scale"], *scales], 1),
    }
    colours = [(1.0, 1.0, 1.0), *(visual.colour[:3] for visual in shown)]
    reference = Camera(
        by_hand, ("rgb", "depth", "instance"), mounts=FORWARD, lights=(), look=Look(by_hand.paint(colours)), **SIZE
    )(EYE.expand(2, 7), everything)  # fmt: skip
    for name in ("rgb", "depth"):
        torch.testing.assert_close(images[name], reference[name])
    merged = reference["instance"]
    merged = torch.stack([merged[:, 0], merged[:, 1], merged[:, 2] + merged[:, 3], merged[:, 4]], 1)
    torch.testing.assert_close(images["instance"], merged)
    torch.testing.assert_close(images["class"][:, 1], merged[:, 1:].sum(1))
    assert all(float(channel.max()) > 0.7 for channel in images["instance"][0])


def test_the_gradient_flows_from_pixels_to_joint_angles_and_controls(double):
    """Through the rasterizer, kinematics and one step of dynamics, against central differences."""
    model = arm()
    scene = Scene(links=model.visuals)
    camera = Camera(
        scene, ("rgb", "depth"), mounts=FORWARD, lights=(DirectionalLight((0.3, 0.5, -0.8)),), **SIZE
    )
    step = gp.Pipeline(
        body=sim.Articulation(model, dt=0.1), camera=camera,
        wires={"body.state": "state", "camera.bodies": "body.pose", "camera.pose": "eye"},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(1, 1, 18, 24, generator=generator) for name in camera.channels}

    def value(q, control):
        images = step.run(
            {"state": {"q": q, "qd": torch.tensor([[0.3, -0.2]])}, "control": control, "eye": EYE}
        )
        return sum((images[f"camera.{name}"] * weights[name]).sum() for name in camera.channels)

    q, control = torch.tensor([[0.4, -0.9]]), torch.tensor([[1.0, -0.7]])
    leaves = [q.clone().requires_grad_(), control.clone().requires_grad_()]
    value(*leaves).backward()
    for given, leaf, eps in ((q, leaves[0], 1e-7), (control, leaves[1], 1e-6)):
        for index in range(2):
            ends = []
            for sign in (1, -1):
                moved = given.clone()
                moved[0, index] += sign * eps
                ends.append(float(value(moved, control) if given is q else value(q, moved)))
            assert float(leaf.grad[0, index]) == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-5)


def test_a_camera_in_the_hand_sees_what_one_at_its_pose_sees(double):
    model = arm()
    flange = model.frame("flange")
    scene = Scene([TriangleMesh.box()], links=model.visuals)
    place = geometry.pose_identity(1, 1)
    place[..., :3] = torch.tensor([1.7, 0.1, 0.4])
    obstacles = {"pose": place, "scale": torch.full((1, 1, 3), 0.35)}
    mount = torch.tensor([-0.5, 0.05, 0.25, *LOOKING_AHEAD])
    in_hand = Camera(scene, "depth", mounts=mount, on=flange, **SIZE)
    assert set(in_hand.contract.inputs) == {"obstacles", "bodies"} and not in_hand.optional_inputs
    carried = Camera(scene, "depth", mounts=mount, **SIZE)
    q = torch.tensor([[0.2, -0.5]])

    def seen(q):
        return in_hand.run({"obstacles": obstacles, "bodies": sim.forward_kinematics(model, q)})["depth"]

    poses = sim.forward_kinematics(model, q)
    hand = geometry.pose_compose(poses[:, flange.body], flange.pose)
    torch.testing.assert_close(seen(q), carried(hand, obstacles, poses)["depth"])
    assert float(seen(q).min()) < 1.1  # its own arm is in the picture
    weight = torch.randn(18, 24, generator=torch.Generator().manual_seed(1))
    x, in_hand.mounts.requires_grad = q.clone().requires_grad_(), True
    (seen(x) * weight).sum().backward()

    def difference(move):
        return float(((move(1e-7) - move(-1e-7)) * weight).sum()) / 2e-7

    with torch.no_grad():
        for joint in range(2):
            unit = torch.eye(2)[joint]
            expected = difference(lambda eps, unit=unit: seen(q + eps * unit))
            assert float(x.grad[0, joint]) == pytest.approx(expected, rel=1e-5)
        gradient = in_hand.mounts.grad.clone()
        for axis in range(3):

            def moved(eps, axis=axis):
                in_hand.mounts[axis] += eps
                image = seen(q)
                in_hand.mounts[axis] -= eps
                return image

            assert float(gradient[axis]) == pytest.approx(difference(moved), rel=1e-5)


def test_a_camera_on_a_frame_of_the_world_does_not_move():
    model = arm()
    fixed = Camera(Scene(links=model.visuals), "depth", on=Frame(sim.WORLD, EYE[0]), mounts=FORWARD, **SIZE)
    still = Camera(Scene(links=model.visuals), "depth", mounts=FORWARD, **SIZE)
    poses = sim.forward_kinematics(model, torch.tensor([[0.4, -0.9]], dtype=F64))
    torch.testing.assert_close(fixed(bodies=poses)["depth"], still(EYE, bodies=poses)["depth"])


URDF = """
<robot name="signs">
  <material name="green"><color rgba="0 1 0 1"/></material>
  <link name="base">
    <visual><origin xyz="0 0 -1"/><geometry><mesh filename="part.obj"/></geometry></visual>
    <visual><geometry><mesh filename="part.obj"/></geometry><material name="green"/></visual>
    <visual><origin xyz="0 0 1"/><geometry><mesh filename="part.obj" scale="-1 1 1"/></geometry>
      <material name="sign"><texture filename="sign.png"/></material></visual>
    <visual><origin xyz="0 0 2"/><geometry><sphere radius="0.3"/></geometry></visual>
    <visual><origin xyz="0 0 3"/><geometry><box size="1 1 1"/></geometry><material name="green"/></visual>
  </link>
</robot>
"""
MJCF = """
<mujoco>
  <asset>
    <texture name="sign" type="2d" file="sign.png"/>
    <texture name="flat" type="cube" builtin="flat" rgb1="0.2 0.4 0.6" rgb2="0.2 0.4 0.6" width="8" height="8"/>
    <material name="sign" texture="sign"/>
    <material name="flat" texture="flat" rgba="1 0.5 1 1"/>
    <material name="plain" rgba="0 1 0 1"/>
    <mesh name="part" file="part.obj"/>
  </asset>
  <worldbody>
    <geom type="mesh" mesh="part" material="sign" pos="0 0 1" contype="0" conaffinity="0"/>
    <geom type="box" size="0.5 0.5 0.1" material="flat"/>
    <geom type="box" size="0.4 0.4 0.2" pos="0 0 -1" material="plain"/>
    <geom type="box" size="0.4 0.4 0.2" pos="0 0 -2" rgba="1 0 0 1" material="plain"/>
    <geom type="box" size="5 5 5" group="3"/>
  </worldbody>
</mujoco>
"""
SIGN = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A wedge with an image of four colours on the side that a camera along y sees."""
    corners = np.array([[-0.5, 0, -0.4], [0.5, 0, -0.4], [0.5, 0, 0.4], [-0.5, 0, 0.4], [0, 0.4, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]])
    Picture.fromarray(SIGN).save(tmp_path / "sign.png")
    material = trimesh.visual.material.SimpleMaterial(diffuse=(51, 102, 204, 255))
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    trimesh.Trimesh(corners, faces, visual=visual, process=False).export(tmp_path / "part.obj")
    (tmp_path / "signs.urdf").write_text(URDF)
    (tmp_path / "signs.xml").write_text(MJCF)
    return tmp_path


def colour_at(model: sim.Model, x: float, z: float) -> list[float]:
    """The colour that a ray along y hits, no light."""
    camera = Camera(
        Scene(links=model.visuals), "rgb", height=3, width=3, field_of_view=0.01, mounts=FORWARD, lights=(), far=9.0
    )  # fmt: skip
    eye = torch.tensor([[x, -5.0, z]])
    pose = geometry.look_at(eye, eye + torch.tensor([0.0, 1.0, 0.0]))
    with gp.mode("hard"):
        image = camera(pose, bodies=torch.zeros(1, 0, 7))["rgb"]
    return [round(value, 2) for value in image[0, :, 1, 1].tolist()]


def test_colours_and_textures_of_urdf_files(folder):
    model = sim.load(folder / "signs.urdf")
    assert colour_at(model, 0.2, -1.0) == [0.2, 0.4, 0.8]  # of the mesh's own file
    assert colour_at(model, 0.2, 0.0) == [0.0, 1.0, 0.0]  # the material goes before it
    assert colour_at(model, 0.0, 2.0) == [0.7, 0.7, 0.7] and colour_at(model, 0.1, 3.1) == [0.0, 1.0, 0.0]
    corners = {
        (-0.25, 1.2): [0, 1, 0],
        (0.25, 1.2): [1, 0, 0],
        (-0.25, 0.8): [1, 1, 1],
        (0.25, 0.8): [0, 0, 1],
    }
    for (x, z), expected in corners.items():  # mirrored: left is right
        assert colour_at(model, x, z) == expected


def test_colours_and_textures_of_mjcf_files(folder):
    model = sim.load(folder / "signs.xml")
    assert len(model.visuals) == 4  # group 3 is not shown
    corners = {
        (-0.25, 1.2): [1, 0, 0],
        (0.25, 1.2): [0, 1, 0],
        (-0.25, 0.8): [0, 0, 1],
        (0.25, 0.8): [1, 1, 1],
    }
    for (x, z), expected in corners.items():
        assert colour_at(model, x, z) == expected
    assert colour_at(model, 0.1, 0.0) == [0.2, 0.2, 0.6]  # the mean of the image times the colour
    assert colour_at(model, 0.1, -1.0) == [0.0, 1.0, 0.0] and colour_at(model, 0.1, -2.0) == [1.0, 0.0, 0.0]


def test_a_pipeline_with_a_robot_is_saved_and_drawn_again(folder, tmp_path):
    model = arm()
    step = gp.Pipeline(
        body=sim.Articulation(model, dt=0.1),
        camera=Camera(Scene(links=model.visuals), "rgb", on=model.frame("flange"), mounts=(-1, 0, 0.5, *LOOKING_AHEAD)),
        wires={"body.state": "state", "camera.bodies": "body.pose"},
    )  # fmt: skip
    values = {"state": step.body.home_state(1), "control": torch.zeros(1, 2)}
    gp.save(step, tmp_path / "run")
    again = gp.load(tmp_path / "run")
    assert torch.equal(step.run(values)["camera.rgb"], again.run(values)["camera.rgb"])


def test_what_cannot_be_drawn_is_refused(folder):
    model = arm()
    scene = Scene([TriangleMesh.box()], [2], links=model.visuals)
    camera = Camera(scene, "depth", **SIZE)
    place = {"pose": geometry.pose_identity(1, 2), "scale": torch.ones(1, 2, 3)}
    pose, bodies = geometry.pose_identity(1), geometry.pose_identity(1, 2)
    assert camera(pose, place, bodies)["depth"].shape == (1, 1, 18, 24)
    with pytest.raises(ShapeError, match=r"N at least 2, got \(1, 1, 7\)"):
        camera(pose, place, bodies[:, :1])
    with pytest.raises(ShapeError, match=r"camera, bodies: .* got none"):
        camera(pose, place)
    with pytest.raises(ShapeError, match=r"camera: pose: .* got none"):
        camera(None, place, bodies)
    with pytest.raises(InputError, match="camera, bodies: the pose of instance 1 of world 0"):
        camera(pose, place, bodies * torch.tensor([[[1.0], [math.nan]]]))
    with pytest.raises(gp.ContractError, match='was not given its input "bodies"'):
        camera.run({"pose": pose, "obstacles": place})
    with pytest.raises(InputError, match="has 3 links of a robot; use"):
        DepthCamera(scene)
    with pytest.raises(InputError, match="a scene needs meshes"):
        Scene(links=[visual for visual in model.visuals if visual.colour[3] == 0])
    (folder / "sign.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"sign\.png' cannot be read"):
        Scene(links=sim.load(folder / "signs.urdf").visuals)
    (folder / "sign.png").unlink()
    with pytest.raises(InputError, match=r"link 'base' names the texture 'sign\.png'"):
        sim.load(folder / "signs.urdf")


@pytest.mark.parametrize("stage", [Camera, DepthCamera])
@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_instances_is_refused(stage, count):
    camera = stage(Scene([TriangleMesh.box()], [2]), **SIZE)
    place = {"pose": geometry.pose_identity(1, count), "scale": torch.ones(1, count, 3)}
    with pytest.raises(ShapeError, match=rf"expected shape \(B, 2, 7\), got \(1, {count}, 7\)"):
        camera(geometry.pose_identity(1), place)
    with pytest.raises(ShapeError, match=r"obstacles\.pose"):
        camera.run({"pose": geometry.pose_identity(1), "obstacles": place})
