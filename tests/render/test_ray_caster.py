"""Hard images of robots and textured files equal embree's: placed by Pinocchio, read by other readers."""

import math
import sys
from pathlib import Path

import numpy as np
import pinocchio as pin
import pytest
import torch
import trimesh
from render_scenes import F64

import gradpath as gp
from gradpath import geometry, sim
from gradpath.meshes import TriangleMesh
from gradpath.render import Attribute, Camera, Model, Scene, pinhole, rasterize

FOLDER = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
FOLDER = FOLDER / "site-packages/cmeel.prefix/share/example-robot-data/robots"
HEIGHT, WIDTH, FAR = 120, 160, 50.0


def cast(
    mesh: trimesh.Trimesh, K: torch.Tensor, origin: np.ndarray, turn: np.ndarray
) -> dict[str, np.ndarray]:
    """What embree hits first beyond 5 cm: faces (-1 for none), depths, points, normals towards the camera in its frame.

    The camera stands at `origin`, and `turn` rotates from its frame to the world.
    """
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    k = K.numpy()
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1).reshape(-1, 3)
    along = rays @ turn.T
    caster = trimesh.ray.ray_pyembree.RayMeshIntersector(mesh)
    where, pixel, face = caster.intersects_location(origin + 0.05 * along, along, multiple_hits=False)
    hit = {
        "face": np.full(HEIGHT * WIDTH, -1),
        "depth": np.full(HEIGHT * WIDTH, FAR),
        "point": np.zeros((HEIGHT * WIDTH, 3)),
        "normal": np.zeros((HEIGHT * WIDTH, 3)),
    }
    normals = mesh.face_normals[face]
    normals = normals * -np.sign((normals * along[pixel]).sum(-1, keepdims=True))
    hit["face"][pixel], hit["depth"][pixel] = face, ((where - origin) @ turn)[:, 2]
    hit["point"][pixel], hit["normal"][pixel] = where, normals @ turn
    return hit


def assert_equal(hit: dict[str, np.ndarray], depth: torch.Tensor, normal: torch.Tensor) -> None:
    """Depth within 1 mm and normals within 0.1 degrees at 99.5 % of the pixels that show something."""
    shown = hit["face"] >= 0
    assert shown.mean() > 0.05
    assert ((depth.reshape(-1).numpy() < FAR) == shown).mean() > 0.995
    assert (np.abs(depth.reshape(-1).numpy() - hit["depth"]) < 1e-3)[shown].mean() > 0.995
    turned = np.linalg.norm(normal.reshape(-1, 3).numpy() - hit["normal"], axis=-1)
    assert (turned < math.radians(0.1))[shown].mean() > 0.995


def read_by_pinocchio(path: Path, q: np.ndarray) -> tuple[trimesh.Trimesh, list[str]]:
    """The robot's visuals in the world, and the name of the joint that moves each face."""
    model = pin.buildModelFromUrdf(str(path))
    parts = pin.buildGeomFromUrdf(
        model, str(path), pin.GeometryType.VISUAL, package_dirs=[str(FOLDER), str(FOLDER.parents[1])]
    )
    data, placed = model.createData(), pin.GeometryData(parts)
    pin.forwardKinematics(model, data, q)
    pin.updateGeometryPlacements(model, data, parts, placed)
    meshes = [
        as_mesh(part.geometry).apply_transform(place.homogeneous)
        for part, place in zip(parts.geometryObjects, placed.oMg, strict=True)
    ]
    sizes = [len(mesh.faces) for mesh in meshes]
    joints = np.repeat([model.names[part.parentJoint] for part in parts.geometryObjects], sizes)
    return trimesh.util.concatenate(meshes), list(joints)


def as_mesh(shape) -> trimesh.Trimesh:
    """A shape of Pinocchio's; primitives with as many sides as they are drawn with."""
    if type(shape).__name__ == "Box":
        return trimesh.creation.box(2 * np.array(shape.halfSide))
    if type(shape).__name__ == "Sphere":
        return trimesh.creation.icosphere(2, shape.radius)
    if type(shape).__name__ == "Cylinder":
        return trimesh.creation.cylinder(shape.radius, 2 * shape.halfLength, sections=16)
    triangles = (shape.tri_indices(i) for i in range(shape.num_tris))
    faces = np.array([(t[0], t[1], t[2]) for t in triangles])
    return trimesh.Trimesh(np.array(shape.vertices()), faces, process=False)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "xarm_description/urdf/xarm7.urdf",
        "hyq_description/robots/hyq_no_sensors.urdf",
        pytest.param("panda_description/urdf/panda.urdf", marks=slow),
        pytest.param("anymal_c_simple_description/urdf/anymal.urdf", marks=slow),
        pytest.param("talos_data/robots/talos_reduced.urdf", marks=slow),
        pytest.param("iris_description/robots/iris.urdf", marks=slow),
    ],
)
def test_robots_equal_a_ray_caster(name):
    model = sim.load(FOLDER / name)
    scene = Scene(links=model.visuals)
    q = 0.4 * np.sin(np.arange(model.nq) + 1.0)
    mesh, joints = read_by_pinocchio(FOLDER / name, q)

    centre, radius = mesh.bounds.mean(0), np.linalg.norm(np.ptp(mesh.bounds, axis=0)) / 2
    eye = torch.tensor(centre + 1.8 * radius * np.array([0.6, -0.7, 0.4]))
    pose = geometry.look_at(eye, torch.tensor(centre))
    camera = Camera(
        scene, ("depth", "normal", "instance"), HEIGHT, WIDTH, 1.0, mounts=(0, 0, 0, 0, 0, 0, 1), far=FAR
    )
    poses = sim.forward_kinematics(model, torch.tensor(q)[None])
    with gp.mode("hard"):
        image = camera(pose[None], bodies=poses)
    hit = cast(mesh, pinhole(WIDTH, HEIGHT, 1.0), eye.numpy(), geometry.quat_to_matrix(pose[3:]).numpy())
    assert_equal(hit, image["depth"][0], image["normal"][0].movedim(0, -1))

    instance = image["instance"][0].flatten(1)
    drawn = torch.where(instance.sum(0) > 0.5, instance.argmax(0), -1).numpy()
    body = {joint.name: index for index, joint in enumerate(model.joints)} | {"universe": sim.WORLD}
    owner = np.array([scene.bodies.index(body[joint]) for joint in joints] + [-1])
    shown = hit["face"] >= 0
    assert (drawn == owner[hit["face"]])[shown].mean() > 0.995
    assert len(set(drawn)) > 3


def test_textured_files_equal_a_ray_caster():
    """Three meshes with images, on which every corner has coordinates of its own."""
    folder = FOLDER / "anymal_c_simple_description/meshes"
    placed: list[Model] = []
    raw: list[trimesh.Trimesh] = []
    for number, name in enumerate(("drive", "hatch", "remote")):
        turn = geometry.quat_normalize(torch.tensor([0.3, 0.9, -0.4, 0.2 * number], dtype=F64))
        model, file = (
            Model.load(folder / f"{name}.dae"),
            trimesh.load(folder / f"{name}.dae", force="mesh", process=False),
        )
        size = 0.5 / float(model.mesh.vertices.norm(dim=-1).max())
        shift = torch.tensor([0.6 * (number - 1), 0.1 * number, 1.6], dtype=F64)
        corners = torch.cat([model.mesh.vertices.double(), torch.tensor(np.array(file.vertices))])
        moved = geometry.quat_rotate(turn, size * corners) + shift
        ours, theirs = moved.split([len(model.mesh.vertices), len(file.vertices)])
        placed.append(Model(TriangleMesh(ours, model.mesh.faces), model.look))
        raw.append(trimesh.Trimesh(theirs.numpy(), file.faces, process=False, visual=file.visual))
        assert len(model.look.textures) == 1
    merged, K = Model.merge(placed), pinhole(WIDTH, HEIGHT, 1.2)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([len(model.mesh.faces) for model in placed]))
    with gp.mode("hard"):
        image = rasterize(
            merged.mesh.vertices[None], merged.mesh.faces, K=K, height=HEIGHT, width=WIDTH, far=FAR,
            channels=("depth", "normal", "uv", "id"),
            attributes={"uv": merged.look.uv, "id": Attribute.one_hot(ids, 3)},
        )  # fmt: skip
    mesh = trimesh.util.concatenate(
        [trimesh.Trimesh(part.vertices, part.faces, process=False) for part in raw]
    )
    hit = cast(mesh, K, np.zeros(3), np.eye(3))
    assert_equal(hit, image["depth"][0], image["normal"][0])
    shown = hit["face"] >= 0
    face = hit["face"][shown]
    owner = np.repeat(np.arange(3), [len(part.faces) for part in raw])
    assert (image["id"][0].argmax(-1).reshape(-1).numpy()[shown] == owner[face]).mean() > 0.995
    assert set(owner[face]) == {0, 1, 2}
    corners = np.concatenate([part.visual.uv[part.faces] for part in raw])
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], hit["point"][shown])
    expected = (weights[..., None] * corners[face]).sum(1)
    difference = np.abs(image["uv"][0].reshape(-1, 2).numpy()[shown] - expected).max(-1)
    assert (difference < 1e-3).mean() > 0.995 and expected.std() > 0.1
