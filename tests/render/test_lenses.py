"""Lenses against a ray caster whose rays are bent independently, and gradients of their coefficients."""

import math

import numpy as np
import pytest
import torch
import trimesh
from render_scenes import F64, at, clutter, joined

import gradpath as gp
from gradpath.errors import InputError
from gradpath.render import Distortion, Fisheye, Orthographic, rasterize

HEIGHT, WIDTH, FAR = 60, 80, 20.0
K = torch.tensor([[50.0, 0.0, 41.0], [0.0, 48.0, 29.0], [0.0, 0.0, 1.0]], dtype=F64)
METRES = torch.tensor([[20.0, 0.0, 41.0], [0.0, 18.0, 29.0], [0.0, 0.0, 1.0]], dtype=F64)


def balls() -> tuple[torch.Tensor, torch.Tensor]:
    """Finely tessellated solids, two of them overlapping, one beside the camera."""
    return joined(
        at(trimesh.creation.icosphere(4, radius=0.8), (-0.5, 0.1, 3.0)),
        at(trimesh.creation.torus(0.9, 0.3, 96, 48), (0.7, 0.4, 4.0), 0.8),
        at(trimesh.creation.icosphere(4, radius=0.6), (2.2, -0.3, 0.4)),
    )


def draw(points, faces, lens, K=K, channels=("alpha", "depth"), **options):
    return rasterize(
        points, faces, K=K, height=HEIGHT, width=WIDTH, far=FAR, lens=lens, channels=channels, **options
    )


def pixels(K) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pixel centres in units of the focal length."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    k = K.numpy()
    return (u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]


def cast(points, faces, origins, rays):
    """First hit of each ray: its place, its face, and the ray's number."""
    mesh = trimesh.Trimesh(points[0].numpy(), faces.numpy(), process=False)
    ray = trimesh.ray.ray_pyembree.RayMeshIntersector(mesh)
    where, pixel, face = ray.intersects_location(origins, rays, multiple_hits=False)
    return where, pixel, face


def undistort(x, y, k1, k2, p1, p2, k3):
    """Fixed-point iteration, as OpenCV's undistortPoints."""
    a, b = x.copy(), y.copy()
    for _ in range(200):
        r = a * a + b * b
        radial = 1 + k1 * r + k2 * r**2 + k3 * r**3
        a, b = (
            (x - 2 * p1 * a * b - p2 * (r + 2 * a * a)) / radial,
            (y - p1 * (r + 2 * b * b) - 2 * p2 * a * b) / radial,
        )
    return a, b


def test_orthographic_depth_normals_and_attributes_equal_parallel_rays():
    points, faces = clutter()
    colours = torch.rand(points.shape[1], 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    with gp.mode("hard"):
        image = draw(
            points, faces, Orthographic(), METRES, ("depth", "normal", "colour", "position", "alpha"),
            attributes={"colour": colours},
        )  # fmt: skip
    x, y = pixels(METRES)
    origins = np.stack([x, y, np.full_like(x, 0.05)], -1).reshape(-1, 3)
    rays = np.broadcast_to([0.0, 0.0, 1.0], origins.shape)
    where, pixel, face = cast(points, faces, origins, rays)
    mesh = trimesh.Trimesh(points[0].numpy(), faces.numpy(), process=False)
    inward = mesh.face_normals[face][:, 2] > 0  # the box that the camera's plane cuts is seen from inside
    bary = trimesh.triangles.points_to_barycentric(mesh.triangles[face], where)
    expected = {
        "depth": where[:, 2:],
        "normal": mesh.face_normals[face],
        "colour": (bary[..., None] * colours.numpy()[mesh.faces[face]]).sum(1),
        "position": where,
    }
    assert (~inward).sum() > 1000
    for name, values in expected.items():
        drawn = image[name][0].reshape(HEIGHT * WIDTH, -1).numpy()[pixel]
        close = np.abs(drawn - values).max(-1) < 1e-4
        assert close[~inward].mean() > 0.995, name
    assert not image["alpha"][0].reshape(-1)[np.setdiff1d(np.arange(HEIGHT * WIDTH), pixel)].any()


COEFFICIENTS = {"k1": -0.25, "k2": 0.06, "p1": 0.01, "p2": -0.015, "k3": 0.002}


def test_distorted_depth_equals_bent_rays():
    points, faces = balls()
    with gp.mode("hard"):
        image = draw(points, faces, Distortion(**COEFFICIENTS))
    a, b = undistort(*pixels(K), **COEFFICIENTS)
    rays = np.stack([a, b, np.ones_like(a)], -1).reshape(-1, 3)
    where, pixel, _ = cast(points, faces, 0.05 * rays, rays)
    depth = np.full(HEIGHT * WIDTH, FAR)
    depth[pixel] = where[:, 2]
    assert (np.abs(image["depth"][0].reshape(-1).numpy() - depth) < 2e-3).mean() > 0.995
    with gp.mode("hard"):
        plain = draw(points, faces, None)["depth"]
    assert float(((plain - image["depth"]).abs() > 0.01).double().mean()) > 0.05


def test_fisheye_distance_equals_bent_rays_beyond_a_half_circle():
    points, faces = balls()
    camera = torch.tensor([[24.0, 0.0, 41.0], [0.0, 24.0, 29.0], [0.0, 0.0, 1.0]], dtype=F64)
    lens = Fisheye(0.02, -0.01, 0.001, -0.0002, angle=2.4)
    with gp.mode("hard"):
        image = draw(points, faces, lens, camera)
    x, y = pixels(camera)
    radius = np.hypot(x, y)
    theta = radius.copy()
    for _ in range(50):  # Newton's method on the polynomial
        t = theta**2
        value = theta * (1 + 0.02 * t - 0.01 * t**2 + 0.001 * t**3 - 0.0002 * t**4) - radius
        slope = 1 + 3 * 0.02 * t - 5 * 0.01 * t**2 + 7 * 0.001 * t**3 - 9 * 0.0002 * t**4
        theta = theta - value / slope
    inside = theta.reshape(-1) < 1.9
    rays = np.stack([x / radius * np.sin(theta), y / radius * np.sin(theta), np.cos(theta)], -1).reshape(
        -1, 3
    )
    where, pixel, _ = cast(points, faces, 0 * rays, rays)
    distance = np.full(HEIGHT * WIDTH, FAR)
    distance[pixel] = np.linalg.norm(where, axis=1)
    close = np.abs(image["depth"][0].reshape(-1).numpy() - distance) < 2e-3
    assert close[inside].mean() > 0.99
    behind = (rays[:, 2] < 0) & (distance < FAR) & inside
    assert behind.sum() > 10 and close[behind].mean() > 0.9


@pytest.mark.parametrize("kind", ["orthographic", "distortion", "fisheye"])
def test_gradients_of_coefficients_vertices_and_intrinsics(kind):
    points, faces = clutter()
    generator = torch.Generator().manual_seed(1)
    points = points + 0.02 * torch.randn(
        points.shape, generator=generator, dtype=F64
    )  # no face exactly edge on
    colours = torch.rand(points.shape[1], 2, generator=generator, dtype=F64)
    coefficients = {
        "orthographic": [],
        "distortion": list(COEFFICIENTS.values()),
        "fisheye": [0.02, -0.01, 0.001, -0.0002],
    }[kind]
    make = {"orthographic": Orthographic, "distortion": Distortion, "fisheye": Fisheye}[kind]
    weight = torch.randn(1, HEIGHT, WIDTH, 4, generator=generator, dtype=F64)
    camera = METRES if kind == "orthographic" else K

    def value(points, K, *coefficients):
        image = draw(
            points,
            faces,
            make(*coefficients),
            K,
            ("alpha", "depth", "colour"),
            attributes={"colour": colours},
        )
        channels = [image["alpha"][..., None], 0.1 * image["depth"][..., None], image["colour"]]
        return (torch.cat(channels, -1) * weight).sum()

    given = [points, camera, *(torch.tensor(c, dtype=F64) for c in coefficients)]
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    value(*leaves).backward()
    for number, leaf in enumerate(leaves):
        direction = torch.randn(leaf.shape, generator=generator, dtype=F64)
        if number == 1:
            direction = direction * torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])

        def moved(sign, number=number, direction=direction):
            inputs = list(given)
            inputs[number] = inputs[number] + sign * 1e-7 * direction
            return float(value(*inputs))

        difference = (moved(1) - moved(-1)) / 2e-7
        assert float((leaf.grad * direction).sum()) == pytest.approx(difference, rel=1e-5, abs=1e-5)


def test_a_strong_lens_does_not_fold_the_outside_into_the_image():
    """Barrel distortion would bring back what lies far beside the view."""
    lens = Distortion(k1=-0.4)
    assert lens.fold() == pytest.approx(1 / math.sqrt(3 * 0.4))
    points, faces = joined(at(trimesh.creation.icosphere(2, radius=0.3), (6.0, 0.0, 2.0)))
    x = points.clone().requires_grad_()
    image = draw(x, faces, lens)
    image["alpha"].sum().backward()
    assert float(image["alpha"].detach().max()) == 0.0 and bool(torch.isfinite(x.grad).all())
    radii = torch.linspace(0.0, 5.0, 200, dtype=F64)
    line = torch.stack([radii, torch.zeros_like(radii), torch.ones_like(radii)], -1)
    assert bool((lens.flat(line)[:, 0].diff() > 0).all())


def test_soft_channels_through_a_lens_blend_towards_far():
    points, faces = balls()
    for lens, camera in ((Orthographic(), METRES), (Fisheye(), K), (Distortion(k1=-0.1), K)):
        image = draw(
            points,
            faces,
            lens,
            camera,
            ("alpha", "depth", "one"),
            attributes={"one": torch.ones(points.shape[1], 1)},
        )
        torch.testing.assert_close(image["one"][..., 0], image["alpha"])
        assert float(image["depth"].max()) == pytest.approx(FAR)
        edge = (image["alpha"] > 0.2) & (image["alpha"] < 0.8)
        assert int(edge.sum()) > 50
        assert bool((image["depth"][edge] < FAR).all())


def test_bad_angles_are_refused():
    with pytest.raises(InputError, match="between 0 and pi"):
        Fisheye(angle=4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lens", [None, Orthographic(), Distortion(**COEFFICIENTS), Fisheye(0.01)])
def test_every_channel_is_finite_also_for_degenerate_faces_and_empty_pixels(lens, dtype):
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(2, 8, 3, generator=generator).to(dtype) + torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    points[:, 1] = points[:, 0]
    points[:, 2] = torch.tensor([0.0, 0.0, 0.05], dtype=dtype)
    faces = torch.randint(0, 8, (12, 3), generator=generator)
    x = points.requires_grad_()
    channels = ("alpha", "depth", "normal", "position", "flow")
    image = draw(x, faces, lens, METRES, channels, points_next=1.1 * x)
    sum(value.sum() for value in image.values()).backward()
    assert all(bool(torch.isfinite(value).all()) for value in image.values())
    assert bool(torch.isfinite(x.grad).all()) and float(image["alpha"].detach().max()) > 0.5
    assert float(image["alpha"].detach().min()) == 0.0
