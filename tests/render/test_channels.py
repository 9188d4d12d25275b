"""Channels besides alpha and depth: values against a ray caster and closed forms, gradients against differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from render_scenes import F64, K, at, clutter, joined

import gradpath as gp
from gradpath import kernels, render
from gradpath.errors import InputError, ShapeError
from gradpath.examples.flight_worlds import asset_meshes
from gradpath.render import Attribute, Topology, face_normals, fragments, pinhole, rasterize, vertex_normals

FAR = 20.0


def draw(points, faces, channels, K=K, height=48, width=64, **options):
    return rasterize(points, faces, K=K, height=height, width=width, far=FAR, channels=channels, **options)


def seamed(faces: torch.Tensor) -> torch.Tensor:
    """An index that gives every corner of every face a row of its own, as texture coordinates with seams have."""
    return torch.arange(3 * len(faces), dtype=torch.int32).reshape(-1, 3)


def random_attributes(points, faces, seed=3) -> dict[str, Attribute]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=F64)

    return {
        "colour": Attribute(rand(1, points.shape[1], 3), background=rand(1, 48, 64, 3)),
        "uv": Attribute(rand(3 * len(faces), 2), seamed(faces)),
        "flat": Attribute.per_face(rand(len(faces), 1)),
    }


CHANNELS = ("colour", "uv", "flat", "normal", "position")


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_gradients_equal_central_differences(channel, mode):
    """In a scene with overlaps and a box that passes through the near plane."""
    points, faces = clutter()
    attributes = random_attributes(points, faces)
    generator = torch.Generator().manual_seed(4)
    channels = {"colour": 3, "uv": 2, "flat": 1}.get(channel, 3)
    weight = torch.randn(1, 48, 64, channels, generator=generator, dtype=F64)

    def value(points, K, values):
        given = dict(attributes)
        if values is not None:
            old = attributes[channel]
            given[channel] = Attribute(values, old.index, old.background)
        with gp.mode(mode):
            return (draw(points, faces, channel, K, attributes=given)[channel] * weight).sum()

    values = attributes[channel].values if channel in attributes else None
    leaves = [points, K] if values is None else [points, K, values]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value(*leaves, *([None] if values is None else [])).backward()
    step = 1e-7
    for number, leaf in enumerate(leaves):
        direction = torch.randn(leaf.shape, generator=generator, dtype=F64)
        if number == 1:
            direction = direction * torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])

        def moved(sign, number=number, direction=direction):
            inputs = [leaf.detach() for leaf in leaves] + ([None] if values is None else [])
            inputs[number] = inputs[number] + sign * step * direction
            return float(value(*inputs))

        difference = (moved(1) - moved(-1)) / (2 * step)
        assert float((leaf.grad * direction).sum()) == pytest.approx(difference, rel=1e-5, abs=1e-6)


def test_slivers_have_the_gradient_of_central_differences():
    """Triangles a thousand times longer than wide, some of them thinner than a pixel."""
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(6, 1, 3, generator=generator, dtype=F64) * torch.tensor([0.8, 0.6, 0.5])
    along = torch.randn(6, 1, 3, generator=generator, dtype=F64)
    width = 1e-3 * torch.randn(6, 1, 3, generator=generator, dtype=F64)
    corners = torch.cat(
        [
            base,
            base + along,
            base + along + width * torch.tensor([1.0, 3.0, 9.0])[:, None, None].repeat(2, 1, 1),
        ],
        1,
    )
    points = (corners + torch.tensor([0.0, 0.0, 4.0])).reshape(1, -1, 3)
    faces = torch.arange(18, dtype=torch.int32).reshape(6, 3)
    colours = torch.rand(18, 3, generator=generator, dtype=F64)
    weight = torch.randn(1, 48, 64, 4, generator=generator, dtype=F64)

    def value(points):
        image = draw(points, faces, ("alpha", "colour"), attributes={"colour": colours})
        return (torch.cat([image["alpha"][..., None], image["colour"]], -1) * weight).sum()

    x = points.clone().requires_grad_()
    value(x).backward()
    assert float(x.grad.abs().sum()) > 1.0
    for _ in range(3):
        direction = torch.randn(points.shape, generator=generator, dtype=F64)
        difference = float(value(points + 1e-7 * direction) - value(points - 1e-7 * direction)) / 2e-7
        assert float((x.grad * direction).sum()) == pytest.approx(difference, rel=1e-5)


def test_normals_uv_and_ids_equal_a_ray_caster():
    """On meshes from files, with texture coordinates of their own at every corner."""
    places = [(-1.2, 0.4, 4.0), (0.9, -0.3, 3.0)]
    parts = [
        at(trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False), place, 0.8)
        for mesh, place in zip(asset_meshes().values(), places, strict=True)
    ]
    points, faces = joined(*parts, at(trimesh.creation.icosphere(2, radius=0.7), (-0.2, -0.9, 4.5)))
    sizes = torch.tensor([*(len(part.faces) for part in parts), 320])
    ids = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    uv = torch.rand(3 * len(faces), 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    attributes = {"uv": Attribute(uv, seamed(faces)), "id": Attribute.one_hot(ids, len(sizes))}
    camera = pinhole(160, 120, math.radians(77))
    with gp.mode("hard"):
        image = draw(
            points, faces, ("normal", "uv", "id", "face", "position"), camera, 120, 160, attributes=attributes
        )

    mesh = trimesh.Trimesh(points[0].numpy(), faces.numpy(), process=False)
    v, u = np.mgrid[0:120, 0:160] + 0.5
    k = camera.numpy()
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1).reshape(-1, 3)
    caster = trimesh.ray.ray_pyembree.RayMeshIntersector(mesh)
    where, pixel, face = caster.intersects_location(0.05 * rays, rays, multiple_hits=False)
    bary = trimesh.triangles.points_to_barycentric(mesh.triangles[face], where)
    expected = {
        "normal": mesh.face_normals[face],
        "uv": (bary[..., None] * uv.numpy()[seamed(faces).numpy()[face]]).sum(1),
        "id": np.eye(len(sizes))[ids.numpy()[face]],
        "position": where,
    }
    tolerance = {"normal": math.radians(0.1), "uv": 1e-3, "id": 1e-9, "position": 1e-3}
    for name, values in expected.items():
        dense = np.zeros((120 * 160, values.shape[1]))
        dense[pixel] = values
        close = np.abs(image[name][0].reshape(-1, values.shape[1]).numpy() - dense).max(-1) <= tolerance[name]
        assert close.mean() > 0.995, name
    hit = np.full(120 * 160, -1)
    hit[pixel] = face
    assert (
        image["face"][0].reshape(-1).numpy() == hit
    ).mean() > 0.99  # faces meet in pixels of their common edge
    assert (hit >= 0).mean() > 0.15


def test_probabilities_of_ids_and_background_sum_to_one():
    points, faces = clutter()
    ids = Topology.of(faces).face_info[:, 0]
    image = draw(points, faces, ("alpha", "id"), attributes={"id": Attribute.one_hot(ids, 5)})
    torch.testing.assert_close(image["id"].sum(-1), image["alpha"])
    assert bool((image["id"] >= 0).all())
    blended = ((image["id"] > 0.1).sum(-1) > 1).sum()
    assert int(blended) > 20  # where one object ends before another, both are probable


def test_colour_gradient_of_an_object_moving_across_another():
    """A red sphere before a blue wall, and beyond its edge: the reference is a supersampled hard image."""
    near, wall = trimesh.creation.icosphere(3, radius=0.5), trimesh.creation.box((3.0, 3.0, 0.2))
    wall.apply_translation((0.0, 0.0, 6.0))
    points, faces = joined(near, wall)
    count = len(near.vertices)
    moves = torch.zeros(points.shape[1], 1, dtype=F64)
    moves[:count] = 1.0
    colours = torch.where(
        moves > 0, torch.tensor([0.9, 0.1, 0.2]).double(), torch.tensor([0.1, 0.3, 0.8]).double()
    )
    colours = Attribute(colours, background=torch.tensor([0.2, 0.9, 0.4], dtype=F64))

    def mean(x, K, size):
        shift = torch.tensor([0.93, 0.15, 4.0]) + x * torch.tensor([1.0, 0.2, 0.3])
        image = draw(points + moves * shift, faces, "colour", K, size, size, attributes={"colour": colours})
        return image["colour"].mean((0, 1, 2))

    camera = pinhole(64, 64, math.radians(50))
    fine = camera.clone()
    fine[:2] *= 16
    x = torch.tensor(0.0, dtype=F64, requires_grad=True)
    image = mean(x, camera, 64)
    found = torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0] for value in image])
    with gp.mode("hard"):
        high, low = (mean(torch.tensor(step, dtype=F64), fine, 1024) for step in (0.02, -0.02))
    expected = (high - low) / 0.04
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


def test_soft_images_are_hard_ones_away_from_contours():
    points, faces = joined(at(trimesh.creation.icosphere(3, radius=0.9), (0.1, 0.0, 4.0)))
    normals = vertex_normals(points, faces)
    names = ("normal", "smooth", "position")
    soft = draw(points, faces, names, attributes={"smooth": normals})
    with gp.mode("hard"):
        hard = draw(points, faces, (*names, "alpha"), attributes={"smooth": normals})
    inside = -torch.nn.functional.max_pool2d(-hard["alpha"], 7, 1, 3) > 0
    assert int(inside.sum()) > 80
    for name in names:
        torch.testing.assert_close(soft[name][inside], hard[name][inside])
    towards = (points[0] - torch.tensor([0.1, 0.0, 4.0])) / 0.9
    torch.testing.assert_close(normals[0], towards, atol=2e-2, rtol=0)


def test_straight_through_has_hard_values_and_soft_gradients():
    points, faces = clutter()
    colours = torch.rand(points.shape[1], 3, generator=torch.Generator().manual_seed(5), dtype=F64)

    def run(mode):
        x = points.clone().requires_grad_()
        with gp.mode(mode):
            image = draw(x, faces, ("colour", "face"), attributes={"colour": colours})
        image["colour"].sum().backward()
        return image, x.grad

    soft, hard, through = (run(mode) for mode in ("soft", "hard", "straight_through"))
    torch.testing.assert_close(through[0]["colour"], hard[0]["colour"])
    assert torch.equal(through[0]["face"], hard[0]["face"])
    assert torch.equal(through[1], soft[1])
    assert not torch.allclose(soft[1], hard[1])


def test_open_surfaces_turn_their_normal_to_the_camera():
    points = torch.tensor([[[-1.0, -1, 3], [1, -1, 3], [1, 1, 4], [-1, 1, 4]]], dtype=F64)
    for faces in ([[0, 1, 2], [0, 2, 3]], [[0, 2, 1], [0, 3, 2]]):
        faces = torch.tensor(faces)
        with gp.mode("hard"):
            normal = draw(points, faces, "normal")["normal"][0, 24, 32]
        expected = torch.tensor([0.0, 1.0, -2.0], dtype=F64) / math.sqrt(5)
        torch.testing.assert_close(normal, expected)
    assert float(face_normals(points, faces)[0, 0, 2]) < 0  # counter-clockwise, seen from the camera


def test_two_backward_passes_are_bit_equal():
    points, faces = clutter()
    attributes = random_attributes(points, faces)

    def run():
        x = points.clone().requires_grad_()
        image = draw(x, faces, ("alpha", "depth", *CHANNELS), attributes=attributes)
        sum(value.square().sum() for value in image.values()).backward()
        return x.grad

    assert torch.equal(run(), run())


@pytest.mark.parametrize("silhouette", ["edge", "softras"])
def test_threads_share_one_image_and_change_no_bit(silhouette):
    """One image is cut into strips; no gradient is a sum whose order depends on who found its parts."""
    points, faces = clutter()
    channels = ("alpha", "depth") if silhouette == "softras" else ("alpha", "depth", *CHANNELS)
    attributes = random_attributes(points, faces)

    def run(threads):
        kernels.set_threads(threads)
        x, k = points.clone().requires_grad_(), K.clone().requires_grad_()
        image = draw(x, faces, channels, k, attributes=attributes, silhouette=silhouette)
        sum(value.square().sum() for value in image.values()).backward()
        return [*(value.detach() for value in image.values()), x.grad, k.grad]

    try:
        alone = run(1)
        for threads in (2, 3):
            assert all(torch.equal(a, b) for a, b in zip(alone, run(threads), strict=True))
    finally:
        kernels.set_threads(None)


def test_nothing_is_added_by_atomics():
    """Their order is that of the threads on a GPU, where sums would differ from run to run."""
    sources = Path(render.__file__).parent.resolve().glob("*.py")
    assert not [path.name for path in sources if "wp.atomic" in path.read_text()]


def test_pieces_are_shaded_before_they_are_blended():
    """Squares of blended colours are not blended squares; only the latter is what a camera sees."""
    points, faces = clutter()
    values = torch.rand(points.shape[1], 1, generator=torch.Generator().manual_seed(6), dtype=F64)
    pieces = fragments(points, faces, K=K, height=48, width=64, far=FAR)
    squares = pieces.blend(pieces.interpolate(values) ** 2)
    plain = pieces.draw(values)
    weights = pieces.weights
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(1 - weights[..., -1], pieces.alpha_depth()[0])
    assert bool((squares >= plain**2 - 1e-9).all())  # Jensen, with a black background
    assert float((squares - plain**2).max()) > 0.01


def test_bad_attributes_are_refused():
    points, faces = clutter()
    count = points.shape[1]
    with pytest.raises(InputError, match=r"the faces name vertices 0 to \d+, but there are 5 rows"):
        draw(points, faces, "colour", attributes={"colour": torch.rand(5, 3)})
    with pytest.raises(InputError, match="the index names rows"):
        draw(points, faces, "uv", attributes={"uv": Attribute(torch.rand(7, 2), seamed(faces))})
    with pytest.raises(ShapeError, match="belongs to another mesh"):
        draw(points, faces, "uv", attributes={"uv": Attribute(torch.rand(count, 2), seamed(faces[1:]))})
    with pytest.raises(ShapeError, match="expected 1 worlds"):
        draw(points, faces, "colour", attributes={"colour": torch.rand(2, count, 3)})
    with pytest.raises(ShapeError, match=r"floats of shape \(A, C\)"):
        Attribute(torch.rand(4))
    with pytest.raises(ShapeError, match=r"integers of shape \(F, 3\)"):
        Attribute(torch.rand(4, 2), torch.rand(2, 3))
    with pytest.raises(InputError, match="labels must lie between 0 and 1"):
        Attribute.one_hot(torch.tensor([0, 2]), 2)
    with pytest.raises(InputError, match=r"unknown channels \['uv'\]"):
        draw(points, faces, "uv")
    with pytest.raises(InputError, match="softras rule has alpha and depth"):
        draw(points, faces, "normal", silhouette="softras")


def test_optical_flow_equals_projected_motion():
    """A turning, approaching ball: the flow takes every point of the first image to its place in the second."""
    mesh = trimesh.creation.icosphere(3, radius=0.9)
    points, faces = joined(at(mesh, (0.1, 0.0, 4.0)))
    turn = torch.tensor(trimesh.transformations.rotation_matrix(0.2, (0.2, 1.0, 0.1))[:3, :3])
    centre, shift = torch.tensor([0.1, 0.0, 4.0], dtype=F64), torch.tensor([0.05, -0.02, -0.3], dtype=F64)

    def move(x):
        return (x - centre) @ turn.T + centre + shift

    with gp.mode("hard"):
        image = draw(points, faces, ("flow", "position", "alpha"), points_next=move(points))
    seen = image["alpha"][0] > 0
    there = move(image["position"][0][seen])
    v, u = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    here = torch.stack([u, v], -1)[seen]
    projected = there @ K.T
    expected = projected[:, :2] / projected[:, 2:] - here
    assert float(expected.norm(dim=-1).mean()) > 1.0
    torch.testing.assert_close(image["flow"][0][seen], expected)
    assert float(image["flow"][0][~seen].abs().max()) == 0.0

    x, y = points.clone().requires_grad_(), move(points).requires_grad_()
    weight = torch.randn(1, 48, 64, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    (draw(x, faces, "flow", points_next=y)["flow"] * weight).sum().backward()
    direction = torch.randn(points.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    for leaf, now, later in ((x, 1e-7, 0.0), (y, 0.0, 1e-7)):
        high, low = (
            draw(
                points + sign * now * direction,
                faces,
                "flow",
                points_next=move(points) + sign * later * direction,
            )
            for sign in (1, -1)
        )
        difference = float(((high["flow"] - low["flow"]) * weight).sum()) / 2e-7
        assert float((leaf.grad * direction).sum()) == pytest.approx(difference, rel=1e-5)
    with pytest.raises(InputError, match="points_next="):
        draw(points, faces, "flow")
    with pytest.raises(ShapeError, match="points_next: expected"):
        draw(points, faces, "flow", points_next=points[:, :5])


def test_supersampled_hard_images_are_means_of_finer_ones():
    points, faces = clutter()
    colours = torch.rand(points.shape[1], 3, generator=torch.Generator().manual_seed(7), dtype=F64)
    names = ("alpha", "depth", "colour", "flow")
    given = {"attributes": {"colour": colours}, "points_next": points + 0.05}
    fine = K.clone()
    fine[:2] *= 4
    with gp.mode("hard"):
        drawn = draw(points, faces, names, supersample=4, **given)
        reference = draw(points, faces, names, fine, 192, 256, **given)
    blocks = {name: value.reshape(1, 48, 4, 64, 4, -1) for name, value in reference.items()}
    torch.testing.assert_close(drawn["alpha"], blocks["alpha"].mean((2, 4))[..., 0])
    torch.testing.assert_close(drawn["depth"], blocks["depth"].log().mean((2, 4)).exp()[..., 0])
    torch.testing.assert_close(drawn["colour"], blocks["colour"].mean((2, 4)))
    torch.testing.assert_close(drawn["flow"], blocks["flow"].mean((2, 4)) / 4)
    assert torch.equal(
        draw(points, faces, "alpha", supersample=4)["alpha"], draw(points, faces, "alpha")["alpha"]
    )
    with gp.mode("hard"):
        with pytest.raises(InputError, match="cannot be antialiased"):
            draw(points, faces, "face", supersample=2)
        with pytest.raises(InputError, match="at least 1; got 0"):
            draw(points, faces, "alpha", supersample=0)
        with pytest.raises(InputError, match="blend it by alpha"):
            image = {"colour": Attribute(colours, background=torch.rand(1, 48, 64, 3))}
            draw(points, faces, "colour", supersample=2, attributes=image)


def test_area_gradient_of_motion_across_the_border():
    """A ball that leaves the image: the reference is a supersampled hard image."""
    points, faces = joined(trimesh.creation.icosphere(3, radius=0.7))
    camera = pinhole(64, 64, math.radians(50))

    def area(x, **options):
        place = torch.tensor([1.6, 0.1, 4.0], dtype=F64) + x * torch.tensor([1.0, 0.2, 0.1], dtype=F64)
        return draw(points + place, faces, "alpha", camera, 64, 64, **options)["alpha"].sum()

    x = torch.tensor(0.0, dtype=F64, requires_grad=True)
    area(x).backward()
    with gp.mode("hard"):
        high, low = (area(torch.tensor(step, dtype=F64), supersample=16) for step in (0.03, -0.03))
    assert float(x.grad) == pytest.approx(float(high - low) / 0.06, rel=0.02)
