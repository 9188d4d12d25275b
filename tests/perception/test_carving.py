"""Free space along rays: lengths are kept, what is behind stays unknown, gradients are those of differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from gradpath import perception
from gradpath.errors import InputError, ShapeError

F64 = torch.float64
ORIGIN = torch.tensor([-1.0, -1.0, 0.0], dtype=F64)
SHAPE = (9, 10, 12)
SPACING = 0.25


def draw(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def look(points, eye, **options):
    valid = options.pop("valid", torch.ones(points.shape[:2], dtype=torch.bool))
    return perception.free_space(points, valid, eye, ORIGIN, SPACING, SHAPE, **options)


def length(free, looks=1.0):
    """Length of all rays in the grid [m], from the map."""
    return SPACING * looks * -torch.log1p(-free).flatten(1).sum(-1)


def test_the_length_of_rays_inside_the_grid_is_kept():
    """Multilinear weights add up to one, so the map holds as many spacings of ray as there are."""
    size = SPACING * (torch.tensor(SHAPE) - 1)
    eye, points = ORIGIN + size * draw(2, 3), ORIGIN + size * draw(2, 7, 3, seed=1)
    true = (points - eye[:, None]).norm(dim=-1)
    free = look(points, eye, margin=0.1, looks=3.0)
    torch.testing.assert_close(length(free, 3.0), (true - 0.1).clamp_min(0.0).sum(-1))
    valid = draw(2, 7, seed=2) > 0.4
    free = look(points, eye, margin=0.1, valid=valid)
    torch.testing.assert_close(length(free), ((true - 0.1).clamp_min(0.0) * valid).sum(-1))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ((40.0, 0.1, 1.0), 8 * SPACING),  # straight through
        ((1.0, 2.1, 1.0), 0.15 * math.sqrt(5.0)),  # enters at y = 1.1 and leaves at y = 1.25
        ((-3.0, 0.1, 9.0), 0.0),  # beside the grid
        ((-2.0, 0.1, 1.0), 0.0),  # ends before it
        ((-3.0, 0.1, 1.0), 0.0),  # ends where it begins
    ],
)
def test_rays_from_outside_count_where_they_are_inside(end, expected):
    eye = torch.tensor([[-3.0, 0.1, 1.0]], dtype=F64)
    found = length(look(torch.tensor([[end]], dtype=F64), eye))
    torch.testing.assert_close(found, torch.tensor([expected], dtype=F64))


def test_a_wall_hides_what_is_behind_it():
    depth = torch.full((1, 1, 12, 16), 1.5, dtype=F64)
    K = torch.tensor([[14.0, 0, 8], [0, 14.0, 6], [0, 0, 1]], dtype=F64)
    points, valid = perception.point_cloud(depth, K)
    eye = torch.zeros(1, 3, dtype=F64)
    free = look(points, eye, valid=valid)[0]
    before, behind = free[4, 4, :5], free[:, :, 7:]  # the axis of the camera, 0 to 1 m; beyond 1.75 m
    assert float(before[1:].min()) > 0.5 and float(behind.max()) == 0.0
    assert float(free[0, 0, 1]) == 0.0  # aside of the view: unknown
    occupied = perception.occupancy(points, valid, ORIGIN, SPACING, SHAPE)
    belief = torch.full((1, *SHAPE), 0.5, dtype=F64)
    after = perception.carve(belief, occupied, free[None])[0]
    assert float(after[4, 4, 6]) > 0.9 and float(after[4, 4, 2]) < 0.2
    torch.testing.assert_close(after[:, :, 8:], belief[0, :, :, 8:])


def test_gradients_equal_central_differences():
    eye, points = ORIGIN + 1.1 * draw(1, 3) + 0.3, ORIGIN - 0.2 + 2.5 * draw(1, 5, 3, seed=1)

    def value(points, eye, origin):
        valid = torch.tensor([[True, True, True, True, False]])
        return perception.free_space(points, valid, eye, origin, 0.5, (5, 4, 6), margin=0.1)

    leaves = (points.requires_grad_(), eye.requires_grad_(), ORIGIN.clone().requires_grad_())
    assert gradcheck(value, leaves)
    value(*leaves).sum().backward()
    assert bool((points.grad[0, 4] == 0).all()) and bool((points.grad[0, :4] != 0).any())
    grids = [draw(1, 3, 4, seed=seed).requires_grad_() for seed in (3, 4, 5)]
    assert gradcheck(perception.carve, grids)


def test_points_at_the_camera_and_bad_input():
    eye = torch.zeros(1, 3, dtype=F64, requires_grad=True)
    points = torch.zeros(1, 2, 3, dtype=F64, requires_grad=True)
    free = look(points, eye)
    free.sum().backward()
    assert float(free.detach().max()) == 0.0
    assert bool(points.grad.isfinite().all()) and bool(eye.grad.isfinite().all())
    with pytest.raises(ShapeError, match=r"free_space: expected points \(B, N, 3\)"):
        look(points, eye[0])
    with pytest.raises(InputError, match="margin are positive"):
        look(points, eye, margin=0.0)
    grid = torch.full((1, 3, 3), 0.5, dtype=F64)
    with pytest.raises(ShapeError, match="on one grid"):
        perception.carve(grid, grid[:, :2], grid)
    with pytest.raises(InputError, match="free is below 0, above 1, or NaN"):
        perception.carve(grid, grid, grid * math.nan)
