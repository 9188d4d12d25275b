import math

import numpy as np
import pytest
import torch
import trimesh
from render_scenes import K, at, clutter, joined

import gradpath as gp
from gradpath import kernels
from gradpath.errors import InputError, ShapeError
from gradpath.examples.flight_worlds import asset_meshes
from gradpath.meshes import TriangleMesh
from gradpath.render import image as image_module
from gradpath.render import pinhole, rasterize
from gradpath.render.topology import Topology

FAR = 20.0


def render(points, faces, K=K, height=48, width=64, **options):
    return rasterize(points, faces, K=K, height=height, width=width, far=FAR, **options)


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_gradients_of_vertices_and_intrinsics_equal_central_differences(sigma):
    points, faces = clutter()
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(1, 48, 64, generator=generator, dtype=torch.float64) for _ in range(2)]

    def value(points, K):
        image = render(points, faces, K, sigma=sigma)
        return (image["alpha"] * weights[0]).sum() + 0.1 * (image["depth"] * weights[1]).sum()

    x, k = points.clone().requires_grad_(), K.clone().requires_grad_()
    value(x, k).backward()
    step = 1e-7
    for _ in range(4):
        direction = torch.randn(points.shape, generator=generator, dtype=torch.float64)
        difference = (value(points + step * direction, K) - value(points - step * direction, K)) / (2 * step)
        assert float((x.grad * direction).sum()) == pytest.approx(float(difference), rel=1e-5)
    for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)):
        direction = torch.zeros_like(K)
        direction[row, column] = 1.0
        difference = (value(points, K + step * direction) - value(points, K - step * direction)) / (2 * step)
        assert float(k.grad[row, column]) == pytest.approx(float(difference), rel=1e-5)


def test_gradients_of_hard_depth_equal_central_differences():
    points, faces = clutter()
    weight = torch.randn(1, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(points):
        with gp.mode("hard"):
            return (render(points, faces)["depth"] * weight).sum()

    x = points.clone().requires_grad_()
    value(x).backward()
    direction = torch.randn(points.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    difference = (value(points + 1e-7 * direction) - value(points - 1e-7 * direction)) / 2e-7
    assert float((x.grad * direction).sum()) == pytest.approx(float(difference), rel=1e-5)


def cast_rays(
    points: torch.Tensor, faces: torch.Tensor, K: torch.Tensor, height: int, width: int
) -> np.ndarray:
    """Depth of the first hit beyond 5 cm, by embree; FAR where there is none."""
    mesh = trimesh.Trimesh(points[0].numpy(), faces.numpy(), process=False)
    ray = trimesh.ray.ray_pyembree.RayMeshIntersector(mesh)
    v, u = np.mgrid[0:height, 0:width] + 0.5
    f = K.numpy()
    toward = np.stack([(u - f[0, 2]) / f[0, 0], (v - f[1, 2]) / f[1, 1], np.ones_like(u)], -1).reshape(-1, 3)
    hits, index, _ = ray.intersects_location(0.05 * toward, toward, multiple_hits=False)
    depth = np.full(height * width, FAR)
    depth[index] = np.minimum(hits[:, 2], FAR)
    return depth.reshape(height, width)


def assets() -> tuple[torch.Tensor, torch.Tensor]:
    """Meshes from files, and each primitive."""
    meshes = [*asset_meshes().values(), TriangleMesh.box(), TriangleMesh.icosphere(), TriangleMesh.cylinder()]
    places = [(-1.6, 0.4, 4.0), (0.2, -0.3, 3.0), (1.8, 0.9, 5.0), (-0.8, -1.4, 6.0), (2.5, -1.0, 4.5)]
    return joined(
        *(
            at(trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False), place, 0.8)
            for mesh, place in zip(meshes, places, strict=True)
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scene", [clutter, assets])
def test_hard_depth_equals_a_ray_caster(dtype, scene):
    points, faces = scene()
    K = pinhole(320, 240, math.radians(77))
    with gp.mode("hard"):
        image = render(points.to(dtype), faces, K, 240, 320)
    expected = torch.tensor(cast_rays(points, faces, K, 240, 320))
    close = (image["depth"][0].double() - expected).abs() < 1e-3
    assert close.double().mean() > 0.995
    assert torch.equal(image["alpha"][0] > 0, image["depth"][0] < FAR)
    # What differs lies at outlines: next to a jump of the ray caster's own depth.
    padded = torch.nn.functional.pad(expected[None], (1, 1, 1, 1), mode="replicate")[0]
    windows = padded.unfold(0, 3, 1).unfold(1, 3, 1)
    jump = windows.amax((-1, -2)) - windows.amin((-1, -2))
    assert bool((jump[~close] > 1e-2).all())


def disc(radius=0.8, depth=4.0, sections=400):
    """A flat, open disc facing the camera: its outline is known."""
    angle = torch.arange(sections, dtype=torch.float64) * (2 * math.pi / sections)
    rim = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.full_like(angle, depth)], -1)
    points = torch.cat([torch.tensor([[0.0, 0.0, depth]], dtype=torch.float64), rim])
    ring = torch.arange(sections)
    faces = torch.stack([torch.zeros_like(ring), 1 + ring, 1 + (ring + 1) % sections], -1).to(torch.int32)
    return points[None], faces


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_alpha_is_the_profile_of_the_distance_to_the_outline(sigma):
    points, faces = disc()
    K = pinhole(96, 96, math.radians(60))
    alpha = render(points, faces, K, 96, 96, sigma=sigma, channels=("alpha",))["alpha"][0]
    v, u = torch.meshgrid(*[torch.arange(96) + 0.5] * 2, indexing="ij")
    inside = float(K[0, 0]) * 0.8 / 4.0 - torch.hypot(u - 48, v - 48)
    x = (0.5 * (inside / (15 / 16 * math.sqrt(2 * math.pi) * sigma) + 1)).clamp(0, 1)
    expected = x**3 * (x * (6 * x - 15) + 10)
    assert float((alpha - expected).abs().max()) < 2e-3  # the disc is a polygon of 400 sides
    assert bool((alpha[inside > 5 * sigma] == 1).all())
    assert bool((alpha[inside < -5 * sigma] == 0).all())


@pytest.mark.parametrize("sigma", [1.0, 5.0])
def test_the_half_level_of_a_union_is_its_outline(sigma):
    points, faces = joined(
        at(trimesh.creation.icosphere(3, radius=0.7), (-0.4, 0.0, 4.0)),
        at(trimesh.creation.box((0.9, 0.9, 0.9)), (0.5, 0.2, 4.5), 0.4),
    )
    K = pinhole(128, 128, math.radians(60))
    soft = render(points, faces, K, 128, 128, sigma=sigma)["alpha"]
    with gp.mode("hard"):
        hard = render(points, faces, K, 128, 128)["alpha"]
    assert float(((soft > 0.5).double() - hard).abs().sum()) <= 0.005 * float(hard.sum())


def test_closed_meshes_do_not_leak():
    """A torus hides its own far rim; that contour must not show through."""
    points, faces = joined(
        at(trimesh.creation.torus(0.9, 0.4, 48, 32), (0.0, 0.0, 3.5), 1.0, (1.0, 0.2, 0.3))
    )
    K = pinhole(128, 128, math.radians(60))
    with gp.mode("hard"):
        hard = render(points, faces, K, 128, 128)["alpha"]
    margin = 6
    eroded = -torch.nn.functional.max_pool2d(-hard[None], 2 * margin + 1, 1, margin)[0]
    alpha = render(points, faces, K, 128, 128, sigma=1.0)["alpha"]
    assert int(eroded.sum()) > 200
    assert float(alpha[eroded > 0].min()) > 1 - 1e-6


def test_area_gradient_equals_the_change_of_a_supersampled_hard_image():
    """Visibility against an independent hard reference: growing a sphere, sigma 1 pixel."""
    mesh = trimesh.creation.icosphere(3, radius=0.7)
    center = torch.tensor([0.13, 0.07, 4.0], dtype=torch.float64)
    local, faces = torch.tensor(mesh.vertices), torch.tensor(np.array(mesh.faces), dtype=torch.int32)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    K = pinhole(64, 64, math.radians(50))
    render((local * scale + center)[None], faces, K, 64, 64)["alpha"].sum().backward()

    fine = K.clone()
    fine[:2] *= 16

    def area(scale):
        with gp.mode("hard"):
            return float(render((local * scale + center)[None], faces, fine, 1024, 1024)["alpha"].sum()) / 256

    assert float(scale.grad) == pytest.approx((area(1.02) - area(0.98)) / 0.04, rel=0.02)


def test_depth_gradient_of_an_object_moving_across_another():
    """A sphere moves from before a wall to before the background; the reference knows nothing of soft edges."""
    near = trimesh.creation.icosphere(3, radius=0.5)
    wall = trimesh.creation.box((3.0, 3.0, 0.2))
    wall.apply_translation((0.0, 0.0, 6.0))
    vertices = torch.tensor(np.concatenate([near.vertices, wall.vertices]))
    faces = torch.tensor(np.concatenate([near.faces, wall.faces + len(near.vertices)]), dtype=torch.int32)
    moves = torch.zeros(len(vertices), 1, dtype=torch.float64)
    moves[: len(near.vertices)] = 1.0
    K = pinhole(64, 64, math.radians(50))

    def place(x):
        return (vertices + moves * (torch.tensor([0.93, 0.15, 4.0]) + x * torch.tensor([1.0, 0.2, 0.3])))[
            None
        ]

    x = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    rasterize(place(x), faces, K=K, height=64, width=64, far=8.0)["depth"].mean().backward()
    fine = K.clone()
    fine[:2] *= 16

    def depth(x):
        with gp.mode("hard"):
            image = rasterize(place(torch.tensor(x)), faces, K=fine, height=1024, width=1024, far=8.0)
        return float(image["depth"].mean())

    assert float(x.grad) == pytest.approx((depth(0.02) - depth(-0.02)) / 0.04, rel=0.02)


@pytest.mark.parametrize("start", [(0.93, 0.15, 4.0), (0.8, 0.1, 4.0)])
def test_the_gradient_of_log_depth_by_every_direction_of_motion(start):
    """Depth blends in its logarithm, whose mean has the gradient of a supersampled hard image."""
    near = trimesh.creation.icosphere(3, radius=0.5)
    wall = trimesh.creation.box((3.0, 3.0, 0.2))
    wall.apply_translation((0.0, 0.0, 6.0))
    vertices, faces = joined(near, wall)
    moves = (torch.arange(vertices.shape[1]) < len(near.vertices))[:, None]
    K = pinhole(64, 64, math.radians(50))
    fine = K.clone()
    fine[:2] *= 16

    def mean(x, K, size):
        points = vertices + moves * (torch.tensor(start, dtype=torch.float64) + x)
        return rasterize(points, faces, K=K, height=size, width=size, far=8.0)["depth"].log().mean()

    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mean(x, K, 64).backward()
    with gp.mode("hard"), torch.no_grad():
        steps = 0.02 * torch.eye(3, dtype=torch.float64)
        expected = torch.stack([mean(step, fine, 1024) - mean(-step, fine, 1024) for step in steps]) / 0.04
    assert float((x.grad - expected).norm()) < 0.02 * float(expected.norm())


def test_crossing_the_near_plane_is_drawn_up_to_it():
    """A floor that runs under and behind the camera."""
    points = torch.tensor([[[-50.0, 1.0, -10.0], [50.0, 1.0, -10.0], [50.0, 1.0, 15.0], [-50.0, 1.0, 15.0]]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    points = points.double().requires_grad_()
    with gp.mode("hard"):
        hard = render(points, faces)["depth"][0]
    v = torch.arange(48, dtype=torch.float64) - 23.5
    expected = torch.where(v > 0, float(K[1, 1]) / v, FAR)
    expected = torch.where(expected < 15, expected, FAR)
    assert torch.allclose(hard.detach(), expected[:, None].expand(48, 64), rtol=1e-9)
    image = render(points, faces)
    (image["depth"].sum() + image["alpha"].sum()).backward()
    assert bool(torch.isfinite(points.grad).all())
    assert bool((image["alpha"][0, -10:] == 1).all())


def test_straight_through_has_hard_values_and_soft_gradients():
    points, faces = clutter()

    def run(mode):
        x = points.clone().requires_grad_()
        with gp.mode(mode):
            image = render(x, faces)
        (image["depth"].log().sum() + image["alpha"].sum()).backward()
        return image, x.grad

    soft, soft_gradient = run("soft")
    hard, hard_gradient = run("hard")
    through, _ = run("straight_through")
    assert torch.allclose(through["depth"], hard["depth"])
    assert torch.allclose(through["alpha"], hard["alpha"])
    assert not torch.allclose(soft["depth"], hard["depth"])
    assert not torch.allclose(soft_gradient, hard_gradient)

    x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
    with gp.mode("straight_through"):
        render(x, faces)["depth"].sum().backward()
    render(y, faces)["depth"].sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_worlds_are_independent_repeatable_and_threads_do_not_matter():
    points, faces = clutter()
    batch = torch.cat([points, points + 0.1, points - 0.1])

    def run(points, threads):
        kernels.set_threads(threads)
        try:
            x = points.clone().requires_grad_()
            image = render(x, faces)
            image["depth"].sum().backward()
            return image["depth"].detach(), x.grad
        finally:
            kernels.set_threads(None)

    depth, gradient = run(batch, 1)
    for again in (run(batch, 1), run(batch, 2)):
        assert torch.equal(depth, again[0])
        assert torch.equal(gradient, again[1])
    alone = run(batch[1:2], 1)
    assert torch.equal(depth[1:2], alone[0])
    assert torch.equal(gradient[1:2], alone[1])


def test_float32_agrees_with_float64():
    points, faces = clutter()
    images = [render(points.to(dtype), faces)["alpha"].double() for dtype in (torch.float32, torch.float64)]
    assert float((images[0] - images[1]).abs().mean()) < 1e-5


def test_degenerate_triangles_and_vertices_behind_the_camera_have_finite_gradients():
    points = torch.tensor(
        [
            [
                [0.0, 0.0, 3.0],
                [0.0, 0.0, 3.0],
                [1.0, 0.0, 3.0],
                [0.5, 0.5, 3.0],
                [0.0, 1.0, -2.0],
                [0.2, 0.1, 0.0],
            ]
        ],
        dtype=torch.float64,
        requires_grad=True,
    )
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [2, 3, 4], [1, 3, 5]], dtype=torch.int32)
    image = render(points, faces)
    (image["alpha"].sum() + image["depth"].sum()).backward()
    assert bool(torch.isfinite(image["depth"]).all())
    assert bool(torch.isfinite(points.grad).all())


def test_bad_input_is_refused_by_name():
    points, faces = clutter()
    with pytest.raises(InputError, match="without faces"):
        render(points, faces[:0])
    with pytest.raises(InputError, match=r"vertex \d+, but there are"):
        render(points[:, :10], faces)
    spoiled = points.clone()
    spoiled[0, 7, 1] = math.nan
    with pytest.raises(InputError, match="vertex 7 of world 0"):
        render(spoiled, faces)
    with pytest.raises(InputError, match="positive focal lengths"):
        render(points, faces, torch.zeros(3, 3))
    with pytest.raises(InputError, match="sigma is above zero"):
        render(points, faces, sigma=0.0)
    with pytest.raises(InputError, match="unknown channels"):
        render(points, faces, channels=("colour",))
    with pytest.raises(InputError, match="unknown silhouette rule"):
        render(points, faces, silhouette="sharp")
    with pytest.raises(ShapeError, match="add the batch axis"):
        render(points[0], faces)


@pytest.mark.parametrize("entry", [(0, 1), (1, 0), (2, 0), (2, 1), (2, 2)])
def test_intrinsics_of_another_form_are_refused(entry):
    points, faces = clutter()
    wrong = K.clone()
    wrong[entry] = 0.5
    with pytest.raises(InputError, match=r"the bottom row \[0, 0, 1\]"):
        render(points, faces, wrong)


@pytest.mark.parametrize(
    "options", [{"far": math.inf}, {"far": math.nan}, {"sigma": math.inf}, {"near": 30.0}]
)
def test_ranges_are_finite(options):
    points, faces = clutter()
    with pytest.raises(InputError, match="finite"):
        rasterize(points, faces, K=K, height=8, width=8, **{"far": FAR, **options})


@pytest.mark.parametrize(
    "points, faces, intrinsics, message",
    [
        (
            torch.float16,
            torch.int32,
            torch.float64,
            "points_camera: expected float32 or float64, got torch.float16",
        ),
        (
            torch.int64,
            torch.int32,
            torch.float64,
            "points_camera: expected float32 or float64, got torch.int64",
        ),
        (torch.float64, torch.float32, torch.float64, "faces: expected an integer dtype, got torch.float32"),
        ("numpy", torch.int32, torch.float64, "points_camera: expected a tensor, got ndarray"),
        (torch.float64, "numpy", torch.float64, "faces: expected a tensor, got ndarray"),
        (torch.float64, torch.int32, "numpy", "K: expected a tensor, got ndarray"),
    ],
)
def test_other_dtypes_and_arrays_are_refused_by_name(points, faces, intrinsics, message):
    given = [
        value.numpy() if kind == "numpy" else value.to(kind)
        for value, kind in zip((*clutter(), K), (points, faces, intrinsics), strict=True)
    ]
    with pytest.raises(ShapeError, match=message):
        render(*given)


def test_faces_of_any_integer_dtype_and_one_channel_by_its_name():
    points, faces = clutter()
    image = render(points, faces.long(), channels="depth")
    assert list(image) == ["depth"]
    assert torch.equal(image["depth"], render(points, faces)["depth"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far_aside", [1e9, -1e9, 1e18])
def test_what_lies_far_aside_is_not_in_the_image(dtype, far_aside):
    """Its pixel is no 32-bit integer; a triangle that reaches there is drawn where it passes."""
    points, faces = clutter()
    one = points.shape[1]
    aside = points.new_tensor(
        [[[far_aside, 0.0, 4.0], [far_aside, 1.0, 4.0], [2 * far_aside, 0.0, 5.0], [0.0, far_aside, 3.0]]]
    )
    more = torch.tensor([[0, 1, 2], [0, 3, 1]], dtype=torch.int32) + one
    x = torch.cat([points, aside], 1).to(dtype).requires_grad_()
    image = render(x, torch.cat([faces, more]))
    (image["alpha"].sum() + image["depth"].sum()).backward()
    assert bool(torch.isfinite(x.grad).all())
    alone = points.to(dtype).requires_grad_()
    expected = render(alone, faces)
    (expected["alpha"].sum() + expected["depth"].sum()).backward()
    assert torch.equal(image["depth"], expected["depth"]) and torch.equal(image["alpha"], expected["alpha"])
    assert torch.equal(x.grad[:, :one], alone.grad)


def test_topology_finds_components_boundaries_and_opposite_vertices():
    _, faces = joined(trimesh.creation.box(), trimesh.creation.icosphere(1))
    topology = Topology.of(faces)
    assert topology.face_info[:, 0].unique().tolist() == [0, 1]
    assert not topology.face_info[:, 1].any()
    assert len(topology.edges) == len(faces) * 3 // 2
    opened = Topology.of(faces[1:])
    assert opened.face_info[0, 1] == 1  # the box lacks a face
    assert int((opened.edges[:, 3] < 0).sum()) == 3
    for a, b, c, d in topology.edges.tolist():
        touching = [set(face) for face in faces.tolist() if {a, b} <= set(face)]
        assert {frozenset(face) for face in touching} == {frozenset({a, b, c}), frozenset({a, b, d})}


def test_blocks_of_pixels_draw_the_same_image(monkeypatch):
    """On a GPU one thread owns a block of pixels; on the CPU, the image."""
    points, faces = clutter()

    def run():
        x = points.clone().requires_grad_()
        image = render(x, faces)
        (image["depth"].sum() + image["alpha"].sum()).backward()
        return image["depth"].detach(), x.grad

    whole = run()
    monkeypatch.setattr(image_module, "tile_shape", lambda device, width, height, worlds: (8, 8))
    blocks = run()
    assert torch.equal(whole[0], blocks[0])
    assert torch.equal(whole[1], blocks[1])
