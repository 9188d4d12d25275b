import math

import numpy as np
import pytest
import torch
import trimesh

from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh

PRIMITIVES = {
    "box": TriangleMesh.box(),
    "icosphere": TriangleMesh.icosphere(3),
    "cylinder": TriangleMesh.cylinder(64),
    "cone": TriangleMesh.cone(64),
    "capsule": TriangleMesh.capsule(1.0, 1.0, 32),
}
VOLUMES = {
    "box": 8.0,
    "icosphere": 4 / 3 * math.pi,
    "cylinder": 2 * math.pi,
    "cone": 2 / 3 * math.pi,
    "capsule": (2 + 4 / 3) * math.pi,
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_are_closed_welded_outward_and_of_unit_size(name):
    mesh = PRIMITIVES[name]
    made = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert made.is_watertight
    assert made.volume == pytest.approx(VOLUMES[name], rel=0.03)  # positive: faces turn outward
    half_height = 2.0 if name == "capsule" else 1.0
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([1.0, 1.0, half_height]))
    torch.testing.assert_close(mesh.vertices.amin(0), -mesh.vertices.amax(0))
    edges, faces = mesh.edges()
    assert len(mesh.vertices) - len(edges) + len(mesh.faces) == 2  # Euler: one closed surface
    assert (faces >= 0).all() and (mesh.components() == 0).all()


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "glb"])
def test_files_round_trip_with_shared_vertices(tmp_path, suffix):
    made = trimesh.creation.icosphere(subdivisions=1)
    made.export(tmp_path / f"ball.{suffix}")
    mesh = TriangleMesh.load(tmp_path / f"ball.{suffix}", scale=2.0)
    assert len(mesh.vertices) == len(made.vertices) and len(mesh.faces) == len(made.faces)
    volume = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy()).volume
    assert volume == pytest.approx(8 * made.volume, rel=1e-4)


def test_a_scene_is_merged_with_its_transforms(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box())
    scene.add_geometry(
        trimesh.creation.box(), transform=trimesh.transformations.translation_matrix([5, 0, 0])
    )
    scene.export(tmp_path / "two.glb")
    mesh = TriangleMesh.load(tmp_path / "two.glb")
    assert len(mesh.faces) == 24 and mesh.components().max() == 1
    assert mesh.vertices[:, 0].max() == pytest.approx(5.5)


def test_edges_of_open_and_branching_meshes():
    vertices = torch.rand(5, 3)
    sheet = TriangleMesh(vertices[:4], torch.tensor([[0, 1, 2], [2, 1, 3]]))
    edges, faces = sheet.edges()
    assert len(edges) == 5 and (faces[:, 1] < 0).sum() == 4
    shared = faces[:, 1] >= 0
    assert edges[shared].tolist() == [[1, 2]] and sorted(faces[shared][0].tolist()) == [0, 1]
    fin = TriangleMesh(vertices, torch.tensor([[0, 1, 2], [2, 1, 3], [1, 2, 4]]))  # three faces on edge 1-2
    edges, faces = fin.edges()
    on_fin = (edges == torch.tensor([1, 2], dtype=torch.int32)).all(1)
    assert on_fin.sum() == 3 and (faces[on_fin][:, 1] == -1).all()
    assert sorted(faces[on_fin][:, 0].tolist()) == [0, 1, 2]
    for pair, (face, _) in zip(edges.tolist(), faces.tolist(), strict=True):
        assert set(pair) <= set(fin.faces[face].tolist())


def test_merge_and_components():
    merged = TriangleMesh.merge([TriangleMesh.box(), TriangleMesh.cone(), TriangleMesh.box()])
    assert merged.components().unique().tolist() == [0, 1, 2]
    assert torch.bincount(merged.components()).tolist() == [12, 32, 12]
    with pytest.raises(InputError, match="merge"):
        TriangleMesh.merge([])


def test_a_long_strip_is_one_component():
    count = 400
    faces = torch.tensor([[k, k + 1, k + 2] for k in range(count)])
    shuffled = torch.randperm(count + 2, generator=torch.Generator().manual_seed(0))
    strip = TriangleMesh(torch.rand(count + 2, 3), shuffled[faces])
    assert (strip.components() == 0).all()


def test_normals_point_outward():
    ball = PRIMITIVES["icosphere"]
    centers = ball.vertices[ball.faces.long()].mean(1)
    assert ((ball.normals * centers).sum(-1) > 0.9 * centers.norm(dim=-1)).all()


def test_bad_meshes_are_refused():
    corner = torch.eye(3)
    with pytest.raises(InputError, match="no faces"):
        TriangleMesh(corner, torch.zeros(0, 3, dtype=torch.int32))
    with pytest.raises(InputError, match="0 to 3 of 3"):
        TriangleMesh(corner, torch.tensor([[0, 1, 3]]))
    with pytest.raises(InputError, match="vertex 1 is"):
        TriangleMesh(torch.tensor([[0.0, 0, 0], [np.nan, 0, 0], [0, 0, 1]]), torch.tensor([[0, 1, 2]]))
    with pytest.raises(InputError, match="triangulate"):
        TriangleMesh(corner, torch.tensor([[0, 1, 2, 0]]))


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        TriangleMesh.load(tmp_path / "nowhere.obj")
    (tmp_path / "empty.obj").write_text("# nothing here\n")
    with pytest.raises(InputError, match=r"empty\.obj"):
        TriangleMesh.load(tmp_path / "empty.obj")
    header = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
    (tmp_path / "points.ply").write_text(header + "end_header\n0 0 0\n")
    with pytest.raises(InputError, match="no triangles"):
        TriangleMesh.load(tmp_path / "points.ply")
