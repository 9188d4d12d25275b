"""Models from files: what was written comes back, seams are welded, and pictures show it."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image as Picture
from render_scenes import F64

import gradpath as gp
from gradpath.errors import InputError
from gradpath.render import Model, Topology, fragments, picture, pinhole, rasterize


def textured_sphere() -> tuple[trimesh.Trimesh, np.ndarray]:
    """A sphere whose longitudes have a seam, and a random image."""
    sphere = trimesh.creation.uv_sphere(radius=1.0, count=(12, 16))
    corners = sphere.vertices[sphere.faces].reshape(-1, 3)
    longitude = np.arctan2(corners[:, 1], corners[:, 0]) / (2 * np.pi) + 0.5
    longitude = longitude.reshape(-1, 3)
    longitude += (longitude < longitude.max(1, keepdims=True) - 0.5).astype(float)
    uv = np.column_stack([longitude.reshape(-1), corners[:, 2] * 0.5 + 0.5])
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    material = trimesh.visual.material.SimpleMaterial(
        image=Picture.fromarray(image), diffuse=(255, 255, 255, 255)
    )
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    faces = np.arange(len(corners)).reshape(-1, 3)
    return trimesh.Trimesh(corners, faces, visual=visual, process=False), image


@pytest.mark.parametrize("suffix", ["obj", "glb"])
def test_a_textured_file_comes_back_welded(tmp_path, suffix):
    mesh, image = textured_sphere()
    mesh.export(tmp_path / f"ball.{suffix}")
    model = Model.load(tmp_path / f"ball.{suffix}", scale=0.5)
    topology = Topology.of(model.mesh.faces)
    assert not topology.face_info.any()  # closed, one component: the seam is no border
    torch.testing.assert_close(model.mesh.vertices.norm(dim=-1), torch.full((len(model.mesh.vertices),), 0.5))
    (texture,) = model.look.textures
    torch.testing.assert_close(texture.image, torch.tensor(image / 255.0, dtype=torch.float32))

    # The ray caster's hit, its barycentrics in the original corners, and the texture's bilinear value there.
    camera = pinhole(48, 40, 1.0)
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], dtype=F64)
    points = (model.mesh.vertices.double() @ turn.T + torch.tensor([0.0, 0.0, 1.5]))[None]
    with gp.mode("hard"):
        pieces = fragments(points, model.mesh.faces, K=camera, height=40, width=48)
        drawn = picture(pieces, points, model.look)[0]
        uv = pieces.interpolate(model.look.uv)[0, ..., 0, :]
    caster = trimesh.Trimesh(0.5 * mesh.vertices @ turn.numpy().T + [0, 0, 1.5], mesh.faces, process=False)
    v, u = np.mgrid[0:40, 0:48] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3) @ np.linalg.inv(camera.numpy()).T
    ray = trimesh.ray.ray_pyembree.RayMeshIntersector(caster)
    where, pixel, face = ray.intersects_location(0 * rays, rays, multiple_hits=False)
    bary = trimesh.triangles.points_to_barycentric(caster.triangles[face], where)
    expected = (bary[..., None] * mesh.visual.uv[mesh.faces[face]]).sum(1)
    difference = uv.reshape(-1, 2).numpy()[pixel] - expected
    difference -= np.round(difference)  # GLB readers and writers may move a coordinate by whole images
    assert (np.abs(difference).max(-1) < 1e-3).mean() > 0.995
    assert len(pixel) > 500 and float(drawn.reshape(-1, 3)[pixel].std()) > 0.05


def test_colours_of_vertices_faces_and_materials(tmp_path):
    box = trimesh.creation.box()
    box.unmerge_vertices()
    colours = np.random.default_rng(1).integers(0, 255, (12, 3), dtype=np.uint8)
    box.visual.vertex_colors = np.repeat(colours, 3, axis=0)
    ball = trimesh.creation.icosphere(1, 0.4)
    ball.apply_translation((2.0, 0, 0))
    ball.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[0.2, 0.4, 0.6, 1.0])
    )
    trimesh.Scene([box, ball]).export(tmp_path / "two.glb")
    model = Model.load(tmp_path / "two.glb")
    assert model.look.texture is None and len(model.mesh.faces) == 12 + 80
    points = (model.mesh.vertices.double() + torch.tensor([-1.0, 0.0, 5.0]))[None]
    with gp.mode("hard"):
        image = rasterize(
            points, model.mesh.faces, K=pinhole(64, 32, 1.0), height=32, width=64,
            channels="colour", attributes={"colour": model.look.colour},
        )["colour"][0]  # fmt: skip
    shown = image.reshape(-1, 3)[image.reshape(-1, 3).sum(-1) > 0]
    is_ball = (shown - torch.tensor([0.2, 0.4, 0.6])).abs().amax(-1) < 0.01
    of_box = torch.tensor(colours / 255.0)
    is_box = (shown[:, None] - of_box).abs().amax(-1).amin(-1) < 0.01
    assert bool((is_ball | is_box).all()) and int(is_ball.sum()) > 20 and int(is_box.sum()) > 50


def test_files_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Model.load(tmp_path / "none.obj")
    (tmp_path / "empty.obj").write_text("v 0 0 0\n")
    with pytest.raises(InputError, match=r"no triangles|cannot be read"):
        Model.load(tmp_path / "empty.obj")
    (tmp_path / "broken.glb").write_bytes(b"no binary")
    with pytest.raises(InputError, match="cannot be read"):
        Model.load(tmp_path / "broken.glb")


def test_colours_of_faces(tmp_path):
    box = trimesh.creation.box()
    colours = np.random.default_rng(1).integers(0, 255, (12, 3), dtype=np.uint8)
    box.visual.face_colors = colours
    box.export(tmp_path / "box.ply")
    model = Model.load(tmp_path / "box.ply")
    shown = model.look.colour.values[model.look.colour.index.long()]
    torch.testing.assert_close(shown, torch.tensor(colours / 255.0).float()[:, None].expand(12, 3, 3))
    assert not Topology.of(model.mesh.faces).face_info[:, 1].any()
