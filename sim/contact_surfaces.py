"""Where a point stands to the surface of a shape: direction out, distance, and how far the surface reaches there.

Each function returns (normal, distance, weight) in the frame of the shape. Its adjoint is finite everywhere.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp

from gradpath.distance_kernels import make_closest_on_triangle
from gradpath.sim.shapes import ShapeKind

SPHERE, BOX, CYLINDER, CAPSULE, PLANE, MESH, CONVEX, HEIGHT_FIELD = (
    wp.constant(int(kind)) for kind in ShapeKind
)


@functools.cache
def make_round_surfaces(scalar):
    """Return the Warp functions (point, size) -> (normal, distance, weight) of sphere, capsule and cylinder."""
    vec3 = wp.types.vector(3, scalar)

    @wp.func
    def beyond(offset: vec3, fallback: vec3, radius: scalar):
        """A ball of `radius` around the origin, seen from `offset`; `fallback` is the way out of its centre."""
        square = wp.dot(offset, offset)
        if square == scalar(0.0):
            return fallback, -radius, scalar(1.0)
        length = wp.sqrt(square)
        return offset / length, length - radius, scalar(1.0)

    @wp.func
    def sphere_surface(p: vec3, size: vec3):
        normal, distance, weight = beyond(p, vec3(scalar(0.0), scalar(0.0), scalar(1.0)), size[0])
        return normal, distance, weight

    @wp.func
    def capsule_surface(p: vec3, size: vec3):
        along = wp.clamp(p[2], -size[1], size[1])
        normal, distance, weight = beyond(
            vec3(p[0], p[1], p[2] - along), vec3(scalar(1.0), scalar(0.0), scalar(0.0)), size[0]
        )
        return normal, distance, weight

    @wp.func
    def cylinder_surface(p: vec3, size: vec3):
        up = scalar(1.0)
        if p[2] < scalar(0.0):
            up = scalar(-1.0)
        over = up * p[2] - size[1]  # beyond the cap
        side, out, weight = beyond(
            vec3(p[0], p[1], scalar(0.0)), vec3(scalar(1.0), scalar(0.0), scalar(0.0)), size[0]
        )
        if out <= scalar(0.0) or over <= scalar(0.0):
            if over > out:
                return vec3(scalar(0.0), scalar(0.0), up), over, weight
            return side, out, weight
        normal, distance, whole = beyond(
            side * out + vec3(scalar(0.0), scalar(0.0), up * over), side, scalar(0.0)
        )
        return normal, distance, whole

    return sphere_surface, capsule_surface, cylinder_surface


@functools.cache
def make_box_surface(scalar):
    """Return the Warp function (point, size, sharp, outward, width) -> (normal, distance, weight) of a box.

    A ball is pushed along its distance. A sharp point, such as the corner of another box, is pushed out of a face that
    looks against `outward`, the way from the middle of its shape to the point: aligned boxes then stand on each other
    though their corners lie on edges. The weight falls smoothly from 1 to 0 where the face ends, within `width`: of
    two aligned corners each carries its share, and what slides over an edge loses its support gradually.
    """
    vec3 = wp.types.vector(3, scalar)

    @wp.func
    def nearest_side(excess: vec3, facing: vec3):
        """The axis in which the least is missing to get out; sides that do not face the point come last."""
        far = scalar(1.0e6)
        x = wp.where(facing[0] < scalar(0.0), excess[0], excess[0] - far)
        y = wp.where(facing[1] < scalar(0.0), excess[1], excess[1] - far)
        z = wp.where(facing[2] < scalar(0.0), excess[2], excess[2] - far)
        if z >= x and z >= y:
            return 2
        if x >= y:
            return 0
        return 1

    @wp.func
    def window(inside: scalar, width: scalar):
        """From 0 at -width to 1 at width, twice differentiable."""
        t = wp.clamp(scalar(0.5) + scalar(0.5) * inside / width, scalar(0.0), scalar(1.0))
        return t * t * t * (t * (t * scalar(6.0) - scalar(15.0)) + scalar(10.0))

    @wp.func
    def box_surface(p: vec3, size: vec3, sharp: bool, outward: vec3, width: scalar):
        sign = vec3(
            wp.where(p[0] < scalar(0.0), scalar(-1.0), scalar(1.0)),
            wp.where(p[1] < scalar(0.0), scalar(-1.0), scalar(1.0)),
            wp.where(p[2] < scalar(0.0), scalar(-1.0), scalar(1.0)),
        )
        excess = wp.cw_mul(sign, p) - size
        facing = vec3(scalar(-1.0), scalar(-1.0), scalar(-1.0))
        if sharp:
            facing = wp.cw_mul(sign, outward)
        else:
            out = vec3(
                wp.max(excess[0], scalar(0.0)),
                wp.max(excess[1], scalar(0.0)),
                wp.max(excess[2], scalar(0.0)),
            )
            square = wp.dot(out, out)
            if square > scalar(0.0):
                length = wp.sqrt(square)
                return wp.cw_mul(sign, out) / length, length, scalar(1.0)
        side = nearest_side(excess, facing)
        normal = vec3(
            wp.where(side == 0, sign[0], scalar(0.0)),
            wp.where(side == 1, sign[1], scalar(0.0)),
            wp.where(side == 2, sign[2], scalar(0.0)),
        )
        distance = excess[side]
        if not sharp:
            return normal, distance, scalar(1.0)
        if facing[side] >= scalar(0.0):
            return normal, distance, scalar(0.0)
        u, v = (side + 1) % 3, (side + 2) % 3
        edge_u = wp.min(width, scalar(0.25) * size[u])
        edge_v = wp.min(width, scalar(0.25) * size[v])
        return normal, distance, window(-excess[u], edge_u) * window(-excess[v], edge_v)

    return box_surface


@functools.cache
def make_mesh_surface(scalar):
    """Return the Warp function (point, corners a, b, c, sign) -> (normal, distance, weight) of the nearest face."""
    vec3 = wp.types.vector(3, scalar)
    closest_on_triangle = make_closest_on_triangle(scalar)

    @wp.func
    def mesh_surface(p: vec3, a: vec3, b: vec3, c: vec3, sign: scalar):
        area = wp.cross(b - a, c - a)
        face_normal = area / wp.sqrt(wp.dot(area, area))
        offset = p - closest_on_triangle(p, a, b, c)
        along = wp.dot(offset, face_normal)
        square = wp.dot(offset, offset)
        # Over the face the offset is along its normal, which stays exact where the distance passes through zero.
        if square - along * along <= scalar(1.0e-4) * square:
            return face_normal, wp.dot(p - a, face_normal), scalar(1.0)
        length = wp.sqrt(square)
        return offset * (sign / length), sign * length, scalar(1.0)

    return mesh_surface


@functools.cache
def make_height_surface(scalar):
    """Return the Warp function (point, size, heights, first, rows, columns) -> (normal, distance, weight).

    The surface is bilinear between grid points; the distance is along its normal below the point.
    """
    vec3 = wp.types.vector(3, scalar)

    @wp.func
    def height_surface(
        p: vec3, size: vec3, heights: wp.array(dtype=scalar), first: int, rows: int, columns: int
    ):
        step_x = scalar(2.0) * size[0] / scalar(columns - 1)
        step_y = scalar(2.0) * size[1] / scalar(rows - 1)
        u = (p[0] + size[0]) / step_x
        v = (p[1] + size[1]) / step_y
        if u < scalar(0.0) or v < scalar(0.0) or u > scalar(columns - 1) or v > scalar(rows - 1):
            return vec3(scalar(0.0), scalar(0.0), scalar(1.0)), p[2], scalar(0.0)
        i = wp.min(int(wp.floor(u)), columns - 2)
        j = wp.min(int(wp.floor(v)), rows - 2)
        s, t = u - scalar(i), v - scalar(j)
        corner = first + j * columns + i
        h00, h10 = heights[corner], heights[corner + 1]
        h01, h11 = heights[corner + columns], heights[corner + columns + 1]
        one = scalar(1.0)
        height = (one - t) * ((one - s) * h00 + s * h10) + t * ((one - s) * h01 + s * h11)
        slope_x = ((one - t) * (h10 - h00) + t * (h11 - h01)) * size[2] / step_x
        slope_y = ((one - s) * (h01 - h00) + s * (h11 - h10)) * size[2] / step_y
        up = one / wp.sqrt(one + slope_x * slope_x + slope_y * slope_y)
        normal = vec3(-slope_x * up, -slope_y * up, up)
        return normal, (p[2] - size[2] * height) * up, one

    return height_surface
