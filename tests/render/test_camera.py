import math

import pytest
import torch

import gradpath as gp
from gradpath import geometry
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.render import DepthCamera, Scene


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
