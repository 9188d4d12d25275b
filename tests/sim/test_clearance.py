import math

import pytest
import torch
from torch.autograd import gradcheck

from gradpath import geometry
from gradpath.distances import Shape
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.sim import Clearance

F64 = torch.float64
SHAPES = (Shape.BOX, TriangleMesh.box(), Shape.SPHERE, Shape.CYLINDER, Shape.CAPSULE)


def obstacles(worlds: int = 2) -> dict[str, torch.Tensor]:
    """One of each shape, in a row along x; all scales are 0.5."""
    pose = geometry.pose_identity(worlds, len(SHAPES), dtype=F64)
    pose[..., 0] = 3.0 * torch.arange(len(SHAPES))
    return {"pose": pose, "scale": torch.full((worlds, len(SHAPES), 3), 0.5, dtype=F64)}


def body(worlds: int = 2) -> torch.Tensor:
    pose = geometry.pose_identity(worlds, dtype=F64)
    pose[:, 2] = 2.0
    return pose


def test_every_instance_is_measured_in_order():
    around = obstacles()
    distance = Clearance(SHAPES)(body(), around)
    x = 3.0 * torch.arange(5, dtype=F64)
    far = (x - 0.5).clamp_min(0.0)
    box, slab = torch.hypot(far, torch.tensor(1.5, dtype=F64)), torch.hypot(x, torch.tensor(2.0, dtype=F64))
    capsule = torch.hypot(x, torch.tensor(1.5, dtype=F64)) - 0.5
    expected = torch.stack([box[0], box[1], slab[2] - 0.5, box[3], capsule[4]])
    torch.testing.assert_close(distance, expected.expand(2, -1))


def test_gradients_of_poses_and_scales():
    around = obstacles()
    inputs = [value.clone().requires_grad_() for value in (body(), around["pose"], around["scale"])]
    clearance = Clearance(SHAPES)
    assert gradcheck(lambda pose, place, scale: clearance(pose, {"pose": place, "scale": scale}), inputs)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("instance", range(len(SHAPES)))
def test_scales_that_no_solid_has_are_refused(instance, wrong):
    around = obstacles()
    around["scale"][1, instance] = wrong
    with pytest.raises(InputError, match=f"clearance: the scale of instance {instance} of world 1"):
        Clearance(SHAPES)(body(), around)


def test_a_pose_that_is_none_is_refused():
    around = obstacles()
    around["pose"][1, 2, 3:] *= 1.5
    with pytest.raises(InputError, match="clearance: the pose of instance 2 of world 1"):
        Clearance(SHAPES)(body(), around)


@pytest.mark.parametrize(
    "instance, axis, allowed",
    [
        *((0, axis, True) for axis in (1, 2)),
        *((instance, axis, False) for instance in (1, 2) for axis in (1, 2)),
        *((instance, axis, axis == 2) for instance in (3, 4) for axis in (1, 2)),
    ],
)
def test_what_would_be_drawn_and_not_measured_is_refused(instance, axis, allowed):
    around = obstacles()
    around["scale"][1, instance, axis] = 0.7
    if allowed:
        assert torch.isfinite(Clearance(SHAPES)(body(), around)).all()
    else:
        with pytest.raises(
            InputError, match=f"instance {instance} of world 1 .* {'xyz'[axis]} would be drawn"
        ):
            Clearance(SHAPES)(body(), around)


def test_other_counts_than_the_scene_has_are_refused():
    with pytest.raises(InputError, match="measures 2 instances, got 5"):
        Clearance(SHAPES[:2])(body(), obstacles())
