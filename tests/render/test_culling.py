"""Instances out of view are left out, and pictures and gradients stay."""

import pytest
import torch

import gradpath as gp
from gradpath import geometry
from gradpath.meshes import TriangleMesh
from gradpath.render import LOOKING_AHEAD, Attribute, Camera, DepthCamera, Look, Scene, Texture, Topology
from gradpath.render import scene as scenes

COUNTS = [5, 6, 4]


@pytest.fixture(autouse=True)
def small_scenes_count(monkeypatch):
    monkeypatch.setattr(scenes, "WORTH_ASKING", 1)


def scene() -> Scene:
    return Scene([TriangleMesh.box(), TriangleMesh.icosphere(1), TriangleMesh.cone(8)], COUNTS)


def places(worlds: int, seed: int):
    """Instances all around the camera, many of them close to the borders of the view or across them."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(COUNTS)
    turn = geometry.quat_normalize(torch.randn(worlds, count, 4, generator=generator))
    where = 4.0 * torch.randn(worlds, count, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.4])
    scale = 0.2 + 0.6 * torch.rand(worlds, count, 3, generator=generator)
    body = geometry.pose(
        torch.zeros(worlds, 3), geometry.quat_exp(0.5 * torch.randn(worlds, 3, generator=generator))
    )
    return body, geometry.pose(where, turn), scale


def draw(stage, monkeypatch, culled, *given):
    """Images and the gradients of all that is given, with or without culling; how many faces were drawn."""
    drawn = []
    whole, whole_part = Scene.seen_part, len(stage.topology.faces)

    def seen_part(self, *arguments):
        part = whole(self, *arguments) if culled else None
        drawn.append(whole_part if part is None else len(part.topology.faces))
        return part

    monkeypatch.setattr(Scene, "seen_part", seen_part)
    body, poses, scales = (value.clone().requires_grad_() for value in given)
    images = stage.run({"pose": body, "obstacles": {"pose": poses, "scale": scales}})
    monkeypatch.setattr(Scene, "seen_part", whole)
    generator = torch.Generator().manual_seed(0)
    sum((image * torch.randn(image.shape, generator=generator)).sum() for image in images.values()).backward()
    return images, [value.grad for value in (body, poses, scales)], drawn[0]


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_depth_and_its_gradients_stay_to_the_bit(monkeypatch, mode, sigma):
    stage = DepthCamera(scene(), height=18, width=24, sigma=sigma, far=8.0)
    fewer = 0
    for seed in range(12):
        given = places(1 + seed % 2, seed)
        with gp.mode(mode):
            all_of_it, culled = (draw(stage, monkeypatch, on, *given) for on in (False, True))
        for name in all_of_it[0]:
            assert torch.equal(all_of_it[0][name], culled[0][name])
        for ours, theirs in zip(all_of_it[1], culled[1], strict=True):
            assert torch.equal(ours, theirs)
        fewer += culled[2] < all_of_it[2]
    assert fewer == 12


def textured() -> tuple[Scene, Look]:
    """Colours per vertex, coordinates per corner, and two textures."""
    place = scene()
    generator = torch.Generator().manual_seed(1)
    faces = len(place.topology.faces)
    uv = Attribute(torch.rand(3 * faces, 2, generator=generator), torch.arange(3 * faces).reshape(-1, 3))
    images = [Texture(torch.rand(8, 8, 3, generator=generator)) for _ in range(2)]
    colour = torch.rand(len(place.vertices), 3, generator=generator)
    return place, Look(colour, uv, images, torch.arange(faces) % 3 - 1)


@pytest.mark.parametrize("shading", ["flat", "gouraud", "phong"])
def test_every_channel_and_look_stays(monkeypatch, shading):
    place, look = textured()
    mounts = torch.tensor([[0.0, 0, 0, *LOOKING_AHEAD], [0.1, 0.2, 0.0, *LOOKING_AHEAD]])
    stage = Camera(place, Camera.CHANNELS, height=18, width=24, mounts=mounts, look=look, shading=shading)
    for mode in ("soft", "straight_through"):
        given = places(1, 3)
        with gp.mode(mode):
            all_of_it, culled = (draw(stage, monkeypatch, on, *given) for on in (False, True))
        assert culled[2] < all_of_it[2]
        for name in Camera.CHANNELS:
            torch.testing.assert_close(culled[0][name], all_of_it[0][name], rtol=0, atol=1e-6)
        for ours, theirs in zip(all_of_it[1], culled[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_part_has_the_topology_of_its_own_faces():
    place = scene()
    seen = torch.zeros(place.instances, dtype=torch.bool)
    seen[[1, 6, 7, 14]] = True
    part = place._parts.take(seen)
    expected = Topology.of(part.topology.faces)
    owner = place.owner[part.vertices]
    assert owner.unique().tolist() == [1, 6, 7, 14]
    torch.testing.assert_close(
        place.topology.faces[part.faces], part.vertices[part.topology.faces.long()].int()
    )
    rows = [torch.cat([topology.edges, topology.edge_corners], 1) for topology in (part.topology, expected)]
    ours, theirs = (sorted(map(tuple, row.tolist())) for row in rows)
    assert ours == theirs
    torch.testing.assert_close(part.topology.face_info[:, 1], expected.face_info[:, 1])


def test_a_view_of_nothing_is_the_background_and_has_no_gradient():
    stage = DepthCamera(scene(), height=9, width=12, far=5.0)
    poses = geometry.pose_identity(1, sum(COUNTS))
    poses[..., 0] = -10.0
    poses.requires_grad_()
    images = stage.run(
        {
            "pose": geometry.pose_identity(1),
            "obstacles": {"pose": poses, "scale": torch.ones(1, sum(COUNTS), 3)},
        }
    )
    assert bool((images["alpha"] == 0).all()) and bool((images["depth"] == 5.0).all())
    images["depth"].sum().backward()
    assert bool((poses.grad == 0).all())
