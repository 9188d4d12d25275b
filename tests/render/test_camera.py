import math

import pytest
import torch

import gradpath as gp
from gradpath import geometry
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.render import (
    LOOKING_AHEAD,
    Camera,
    DepthCamera,
    DirectionalLight,
    Fisheye,
    Look,
    PointLight,
    Scene,
)


def camera() -> DepthCamera:
    return DepthCamera(Scene([TriangleMesh.box(), TriangleMesh.icosphere(1)]), height=9, width=12)


def world(worlds: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    place = geometry.pose_identity(worlds, 2)
    place[..., 0] = 4.0
    place[:, 1, 1] = 1.5
    return geometry.pose_identity(worlds), {"pose": place, "scale": torch.full((worlds, 2, 3), 0.7)}


def test_the_camera_looks_ahead():
    with gp.mode("hard"):
        depth, alpha = camera()(*world())
    assert depth.shape == alpha.shape == (2, 1, 9, 12)
    assert depth[0, 0, 4, 6].item() == pytest.approx(3.3, rel=1e-5)
    assert alpha[0, 0, 4, 6] == 1 and alpha[0, 0, 4, 11] == 0


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_no_solid_has_are_refused(wrong):
    pose, obstacles = world()
    obstacles["scale"][1, 0, 2] = wrong
    with pytest.raises(InputError, match="camera, obstacles: the scale of instance 0 of world 1"):
        camera()(pose, obstacles)


@pytest.mark.parametrize("factor", [0.0, 1.01, math.nan])
def test_poses_that_are_none_are_refused(factor):
    pose, obstacles = world()
    spoiled = {**obstacles, "pose": obstacles["pose"].clone()}
    spoiled["pose"][1, 1, 3:] *= factor
    with pytest.raises(InputError, match="camera, obstacles: the pose of instance 1 of world 1"):
        camera()(pose, spoiled)
    pose[1, 3:] *= factor
    with pytest.raises(InputError, match="camera: the pose of world 1"):
        camera()(pose, obstacles)


EVERYTHING = Camera.CHANNELS
SUN = (DirectionalLight((0.31, 0.5, -0.7)),)  # grazes no face of the scene


def scene() -> Scene:
    return Scene([TriangleMesh.box(), TriangleMesh.icosphere(1)])


def test_every_channel_of_one_camera():
    place = scene()
    colours = place.paint([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    stage = Camera(place, EVERYTHING, height=9, width=12, look=Look(colours), lights=())
    pose, obstacles = world()
    images = stage.run({"pose": pose, "obstacles": obstacles})
    depth, alpha = camera()(pose, obstacles)
    torch.testing.assert_close(images["alpha"], alpha)
    torch.testing.assert_close(images["depth"], depth)
    torch.testing.assert_close(images["instance"], images["class"])
    torch.testing.assert_close(images["instance"].sum(1, keepdim=True), alpha)
    with gp.mode("hard"):
        images = stage.run({"pose": pose, "obstacles": obstacles})
    middle = {name: image[1, :, 4, 6] for name, image in images.items()}
    torch.testing.assert_close(middle["rgb"], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(
        middle["position"][0], torch.tensor(3.3)
    )  # the near side of the box, in the world
    torch.testing.assert_close(middle["normal"], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(images["rgb"][0, :, 4, 11], torch.tensor([0.75, 0.82, 0.9]))


def test_several_cameras_draw_what_each_draws_alone():
    mounts = torch.tensor([[0.0, 0.0, 0.0, *LOOKING_AHEAD], [0.2, -0.5, 0.3, *LOOKING_AHEAD]])
    options = {"height": 9, "width": 12, "lights": (PointLight((0.0, 1.0, 2.0)),), "shading": "phong"}
    pose, obstacles = world()
    both = Camera(scene(), ("rgb", "depth"), mounts=mounts, **options)
    both = both.run({"pose": pose, "obstacles": obstacles})
    assert both["rgb"].shape == (2, 2, 3, 9, 12)
    for number, mount in enumerate(mounts):
        alone = Camera(scene(), ("rgb", "depth"), mounts=mount, **options)(*world())
        for name in both:
            torch.testing.assert_close(both[name][:, number], alone[name])
    assert not torch.allclose(both["rgb"][:, 0], both["rgb"][:, 1])


def test_gradients_reach_poses_scales_mounts_and_intrinsics():
    torch.set_default_dtype(torch.float64)
    try:
        stage = Camera(
            scene(), EVERYTHING, height=9, width=12, field_of_view=1.0, lens=Fisheye(0.01), lights=SUN
        )
        pose, obstacles = world(1)
        pose, obstacles = pose.double(), {name: value.double() for name, value in obstacles.items()}
        obstacles["pose"][..., 1:3] += torch.tensor([0.03, 0.07])
        mounts = stage.mounts.clone()
        del stage._buffers["mounts"]
        generator = torch.Generator().manual_seed(0)
        weights = {name: torch.randn(1, 1, 9, 12, generator=generator) for name in EVERYTHING}

        def value(position, instances, scale, mount, intrinsics):
            body = torch.cat([position, pose[:, 3:]], 1)
            placed = {"pose": torch.cat([instances, obstacles["pose"][..., 3:]], -1), "scale": scale}
            stage.mounts, stage._buffers["intrinsics"] = torch.cat([mount, mounts[3:]]), intrinsics
            images = stage(body, placed)
            return sum((image * weights[name]).sum() for name, image in images.items())

        given = [
            pose[:, :3],
            obstacles["pose"][..., :3],
            obstacles["scale"],
            mounts[:3],
            stage.intrinsics.clone(),
        ]
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        value(*leaves).backward()
        for number, leaf in enumerate(leaves):
            direction = torch.randn(leaf.shape, generator=generator)
            if leaf.shape == (3, 3):
                direction = direction * torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])

            def moved(sign, number=number, direction=direction):
                inputs = list(given)
                inputs[number] = inputs[number] + sign * 1e-7 * direction
                return float(value(*inputs))

            high, low = moved(1), moved(-1)
            assert float((leaf.grad * direction).sum()) == pytest.approx(
                (high - low) / 2e-7, rel=1e-5, abs=1e-5
            )
    finally:
        torch.set_default_dtype(torch.float32)


def test_straight_through_has_hard_values_and_soft_gradients():
    stage = Camera(scene(), ("rgb", "depth"), height=9, width=12)

    def run(name):
        pose, obstacles = world()
        pose.requires_grad_()
        with gp.mode(name):
            images = stage(pose, obstacles)
        images["rgb"].sum().backward()
        return images, pose.grad

    soft, hard, through = run("soft"), run("hard"), run("straight_through")
    torch.testing.assert_close(through[0]["rgb"], hard[0]["rgb"])
    assert torch.equal(through[1], soft[1]) and not torch.allclose(soft[1], hard[1])


def test_bad_cameras_are_refused():
    with pytest.raises(InputError, match="unknown channels"):
        Camera(scene(), ("rgb", "infrared"))
    with pytest.raises(InputError, match="camera, mounts: the pose of world 1"):
        Camera(scene(), mounts=torch.tensor([[0.0, 0, 0, *LOOKING_AHEAD], [0.0] * 7]))
    with pytest.raises(InputError, match="expected a colour for each of 2 meshes"):
        scene().paint([(1.0, 0.0, 0.0)])
