"""Colour pictures: closed forms of lit and textured surfaces, gradients against differences."""

import math

import pytest
import torch
from render_scenes import F64, K, clutter

import gradpath as gp
from gradpath import geometry
from gradpath.errors import InputError, ShapeError
from gradpath.render import (
    AmbientLight,
    Attribute,
    DirectionalLight,
    Look,
    PointLight,
    Texture,
    fragments,
    illuminate,
    picture,
    pinhole,
    sky,
)

FAR = 20.0
LIGHTS = (
    AmbientLight((0.2, 0.3, 0.1)),
    DirectionalLight((0.2, 0.5, 0.9)),
    PointLight((1.0, -2.0, 1.0), falloff=True),
)


def pieces_of(points, faces, K=K, height=48, width=64):
    return fragments(points, faces, K=K, height=height, width=width, far=FAR)


def random_texture(*shape, seed=2) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def corner_uv(faces, seed=3) -> Attribute:
    """Small triangles at random places of the texture."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(len(faces), 1, 2, generator=generator, dtype=F64)
    corner = 0.2 * torch.rand(len(faces), 3, 2, generator=generator, dtype=F64)
    index = torch.arange(3 * len(faces), dtype=torch.int32).reshape(-1, 3)
    return Attribute((place + corner).reshape(-1, 2), index)


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("shading", ["flat", "gouraud", "phong"])
def test_gradients_of_everything_equal_central_differences(mode, shading):
    """Vertices, intrinsics, colours, texture, coordinates, lights, eye and background in one textured, shiny scene."""
    points, faces = clutter()
    uv = corner_uv(faces)
    given = {
        "points": points,
        "K": K,
        "colour": random_texture(points.shape[1], 3),
        "texture": random_texture(16, 12, 3),
        "uv": uv.values,
        "ambient": torch.tensor([0.2, 0.3, 0.1], dtype=F64),
        "sun": torch.tensor([0.2, 0.5, 0.9], dtype=F64),
        "sunlight": torch.tensor([0.5, 0.6, 0.4], dtype=F64),
        "lamp": torch.tensor([1.0, -2.0, 1.0], dtype=F64),
        "eye": torch.tensor([[0.1, 0.0, -0.2]], dtype=F64),
        "background": random_texture(1, 48, 64, 3),
    }
    weight = torch.randn(1, 48, 64, 3, generator=torch.Generator().manual_seed(4), dtype=F64)

    def value(given):
        look = Look(
            given["colour"],
            Attribute(given["uv"], uv.index),
            Texture(given["texture"]),
            specular=0.5,
            shininess=9.0,
        )
        lights = [
            AmbientLight(given["ambient"]),
            DirectionalLight(given["sun"], given["sunlight"]),
            PointLight(given["lamp"], falloff=True),
        ]
        with gp.mode(mode):
            image = picture(
                pieces_of(given["points"], faces, given["K"]),
                given["points"],
                look,
                lights,
                eye=given["eye"],
                shading=shading,
                background=given["background"],
            )
        return (image * weight).sum()

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    value(leaves).backward()
    generator = torch.Generator().manual_seed(5)
    for name, leaf in leaves.items():
        direction = torch.randn(leaf.shape, generator=generator, dtype=F64)
        if name == "K":
            direction = direction * torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])
        step = 1e-8 if name in ("points", "uv", "K") else 1e-6
        high, low = ({**given, name: given[name] + sign * step * direction} for sign in (1, -1))
        difference = float(value(high) - value(low)) / (2 * step)
        found = float((leaf.grad * direction).sum())
        assert found == pytest.approx(difference, rel=1e-5, abs=2e-5), name


def square(distance=4.0, half=1.0):
    """A square of two triangles that faces the camera, with texture coordinates from its lower left corner."""
    points = torch.tensor(
        [[[-half, half, 0.0], [half, half, 0.0], [half, -half, 0.0], [-half, -half, 0.0]]], dtype=F64
    )
    uv = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=F64)
    return points + torch.tensor([0.0, 0.0, distance]), torch.tensor([[0, 2, 1], [0, 3, 2]]), uv


def test_a_textured_square_shows_its_image_pixel_by_pixel():
    """One texel per pixel: the picture is the texture, the right way up."""
    points, faces, uv = square()
    image = random_texture(32, 32, 3)
    K = torch.tensor([[64.0, 0.0, 16.0], [0.0, 64.0, 16.0], [0.0, 0.0, 1.0]], dtype=F64)
    with gp.mode("hard"):
        pieces = pieces_of(points, faces, K, 32, 32)
        drawn = picture(pieces, points, Look(uv=uv, texture=Texture(image)))
    torch.testing.assert_close(drawn[0], image, rtol=0, atol=1e-9)


def test_far_away_a_texture_is_its_mean_and_levels_mix_in_between():
    image = random_texture(32, 32, 3)
    texture = Texture(image)
    assert [tuple(level.shape[1:3]) for level in texture.levels] == [
        (32, 32),
        (16, 16),
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]
    uv = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    mean = texture.sample(uv, torch.full((1, 50), 9.0, dtype=F64))
    torch.testing.assert_close(mean, image.mean((0, 1)).expand(1, 50, 3))
    one, two, between = (
        texture.sample(uv, torch.full((1, 50), level, dtype=F64)) for level in (1.0, 2.0, 1.25)
    )
    torch.testing.assert_close(between, 0.75 * one + 0.25 * two)
    torch.testing.assert_close(texture.sample(uv), texture.sample(uv, torch.full((1, 50), -3.0, dtype=F64)))
    # Level k is the image whose texels are means over 2^k x 2^k.
    coarse = Texture(image.reshape(16, 2, 16, 2, 3).mean((1, 3)))
    torch.testing.assert_close(one, coarse.sample(uv))


def test_a_square_twice_as_far_is_drawn_one_level_coarser():
    image = random_texture(64, 64, 3)
    K = torch.tensor([[64.0, 0.0, 8.0], [0.0, 64.0, 8.0], [0.0, 0.0, 1.0]], dtype=F64)
    points, faces, uv = square(distance=8.0)  # 16 pixels wide: 4 x 4 texels in each
    with gp.mode("hard"):
        drawn = picture(pieces_of(points, faces, K, 16, 16), points, Look(uv=uv, texture=Texture(image)))
    torch.testing.assert_close(drawn[0], image.reshape(16, 4, 16, 4, 3).mean((1, 3)), rtol=0, atol=1e-9)


def test_coordinates_outside_repeat_or_stay_at_the_border():
    image = random_texture(4, 4, 1)
    uv = torch.tensor([[[0.3, 0.4], [1.3, -0.6], [7.0, 0.5]]], dtype=F64)
    repeated, clamped = Texture(image).sample(uv)[0], Texture(image, "clamp").sample(uv)[0]
    torch.testing.assert_close(repeated[0], repeated[1])
    torch.testing.assert_close(clamped[2], image[1:3, 3].mean(0))


def test_worlds_may_have_textures_of_their_own():
    images = random_texture(2, 8, 8, 3)
    uv = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    both = Texture(images).sample(uv)
    for world in (0, 1):
        torch.testing.assert_close(
            both[world : world + 1], Texture(images[world]).sample(uv[world : world + 1])
        )
    with pytest.raises(ShapeError, match="2 worlds, but is drawn in 3"):
        Texture(images).sample(torch.rand(3, 5, 2))


def cube(turn: float):
    """A cube of half width 0.8, turned about its own axis, with corners of its own for each side."""
    sides, faces = [], []
    base = torch.tensor(
        [[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]], dtype=F64
    )
    for axis in ((0.0, 0, 0), (0, 0.5, 0), (0, 1, 0), (0, -0.5, 0), (0.5, 0, 0), (-0.5, 0, 0)):
        q = geometry.quat_exp(math.pi * torch.tensor(axis, dtype=F64))
        faces += [[4 * len(sides) + i for i in face] for face in ((0, 2, 1), (0, 3, 2))]
        sides.append(geometry.quat_rotate(q, base))
    points = 0.8 * torch.cat(sides)
    q = geometry.quat_exp(turn * torch.tensor([0.3, 0.9, 0.2], dtype=F64))
    uv = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=F64).repeat(6, 1)
    return geometry.quat_rotate(q, points)[None] + torch.tensor([0.2, -0.1, 4.0]), torch.tensor(faces), uv


def test_a_lit_textured_cube_equals_its_closed_form():
    """Lambert's law on the plane of the side that a pixel's ray meets, times a texture that is linear in u and v."""
    points, faces, uv = cube(0.7)
    size = 8
    ramp = (torch.arange(size, dtype=F64) + 0.5) / size
    texture = torch.stack(
        [ramp.expand(size, size), (1 - ramp)[:, None].expand(size, size), torch.ones(size, size)], -1
    )
    camera = pinhole(64, 48, math.radians(50))
    sun = torch.tensor([0.3, 0.4, 0.8], dtype=F64)
    lights = [AmbientLight((0.1, 0.1, 0.1)), DirectionalLight(sun, (0.9, 0.8, 0.7))]
    with gp.mode("hard"):
        pieces = pieces_of(points, faces, camera)
        drawn = {
            s: picture(pieces, points, Look(uv=uv, texture=Texture(texture, "clamp")), lights, shading=s)
            for s in ("flat", "phong")
        }

    v, u = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    rays = torch.stack(
        [(u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1], torch.ones_like(u)], -1
    ).double()
    expected, nearest = torch.zeros(48, 64, 3, dtype=F64), torch.full((48, 64), FAR, dtype=F64)
    border = torch.zeros(48, 64, dtype=torch.bool)
    for side in range(6):
        o, x, _, y = points[0, 4 * side : 4 * side + 4]
        x, y = x - o, y - o
        normal = torch.linalg.cross(y, x)
        normal = normal / normal.norm()
        z = (normal @ o) / (rays @ normal)
        at = rays * z[..., None] - o
        s, t = at @ x / (x @ x), at @ y / (y @ y)
        seen = (s > 0) & (s < 1) & (t > 0) & (t < 1) & (rays @ normal < 0) & (z < nearest)
        cosine = float((-(sun / sun.norm()) @ normal).clamp(min=0))
        light = 0.1 + cosine * torch.tensor([0.9, 0.8, 0.7], dtype=F64)
        colour = torch.stack([s, 1 - t, torch.ones_like(s)], -1) * light
        expected = torch.where(seen[..., None], colour, expected)
        nearest = torch.where(seen, z, nearest)
        margin = torch.stack([s, 1 - s, t, 1 - t]).amin(0)
        slanted = (rays @ normal).abs() < 0.2  # so much that a pixel holds more than a texel
        border |= seen & (slanted | (margin < 0.5 / size))  # half a texel from its border, it is not linear
    assert int((nearest < FAR).sum()) > 500 and int(border.sum()) < 0.4 * int((nearest < FAR).sum())
    for shading, image in drawn.items():
        wrong = (image[0] - expected).abs().amax(-1)
        assert float(wrong[~border].max()) < 1e-6, shading


def test_reflections_equal_phongs_formula():
    position = torch.tensor([[[0.0, 0.0, 4.0]]], dtype=F64)
    normal = torch.tensor([[[0.0, 0.6, -0.8]]], dtype=F64)
    lamp = torch.tensor([1.0, 2.0, 1.0], dtype=F64)
    diffuse, specular = illuminate(
        position, normal, [PointLight(lamp, falloff=True)], torch.zeros(1, 3, dtype=F64), 5.0
    )
    away = lamp - position[0, 0]
    toward = away / away.norm()
    cosine = toward @ normal[0, 0]
    mirrored = 2 * cosine * normal[0, 0] - toward
    strength = 1 / (away @ away)
    torch.testing.assert_close(diffuse[0, 0], (cosine * strength).expand(3))
    torch.testing.assert_close(specular[0, 0], (-mirrored[2]).clamp(min=0).pow(5).mul(strength).expand(3))


def test_open_surfaces_are_lit_on_the_side_that_is_seen():
    points, faces, _ = square()
    sun = DirectionalLight((0.0, 0.0, 1.0), (1.0, 0.5, 0.2))
    for index in (faces, faces.flip(1)):
        with gp.mode("hard"):
            pieces = pieces_of(points, index)
            for shading in ("flat", "phong"):
                image = picture(pieces, points, lights=[sun], shading=shading)
                torch.testing.assert_close(image[0, 24, 32], torch.tensor([1.0, 0.5, 0.2], dtype=F64))


def test_several_textures_are_chosen_by_face():
    points, faces, uv = square()
    textures = [Texture(torch.full((4, 4, 3), value, dtype=F64)) for value in (0.25, 0.75)]
    for chosen in ((0, 1), (1, -1)):
        look = Look(uv=uv, texture=textures, texture_of=torch.tensor(chosen))
        with gp.mode("hard"):
            image = picture(pieces_of(points, faces), points, look)[0, ..., 0]
        values = [1.0 if number < 0 else (0.25, 0.75)[number] for number in chosen]
        assert float(image[28, 36]) == pytest.approx(values[0])  # right and below the diagonal
        assert float(image[20, 28]) == pytest.approx(values[1])


def test_the_sky_is_light_at_the_horizon_and_above_the_ground():
    level = geometry.pose_identity(1, dtype=F64)
    level[:, 3:] = torch.tensor([-0.5, 0.5, -0.5, 0.5])  # looking along the world's x
    image = sky(level, pinhole(32, 24, math.radians(90)), 24, 32)[0]
    assert image.shape == (24, 32, 3)
    torch.testing.assert_close(image[-1, 16], torch.tensor([0.45, 0.42, 0.38], dtype=F64), rtol=0, atol=1e-3)
    assert bool((image[:11, 16, 0].diff() > 0).all())  # redder towards the horizon
    assert bool((image[:11, :, 2] > 0.88).all())


def test_bad_looks_and_lights_are_refused():
    points, faces, uv = square()
    with pytest.raises(InputError, match="needs texture coordinates"):
        Look(texture=Texture(torch.rand(4, 4, 3)))
    with pytest.raises(InputError, match="2 textures need texture_of"):
        Look(uv=uv, texture=[Texture(torch.rand(4, 4, 3))] * 2)
    with pytest.raises(ShapeError, match=r"texture: expected floats of shape \(H, W, C\)"):
        Texture(torch.zeros(4, 4))
    with pytest.raises(ShapeError, match=r"got torch.uint8"):
        Texture(torch.zeros(4, 4, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match="unknown wrap"):
        Texture(torch.rand(4, 4, 3), "mirror")
    pieces = pieces_of(points, faces)
    with pytest.raises(InputError, match="unknown shading"):
        picture(pieces, points, shading="toon")
    with pytest.raises(InputError, match="needs a direction"):
        picture(pieces, points, lights=[DirectionalLight((0.0, 0.0, 0.0))])
    with pytest.raises(ShapeError, match=r"light, colour: expected shape \(3,\)"):
        picture(pieces, points, lights=[AmbientLight(torch.rand(2))])
    with pytest.raises(InputError, match="expected lights, got str"):
        picture(pieces, points, lights=["sun"])
    with pytest.raises(ShapeError, match="expected 2 channels, got 3"):
        picture(pieces, points, Look(uv=torch.rand(4, 3), texture=Texture(torch.rand(4, 4, 3))))
