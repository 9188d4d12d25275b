"""Where an edge of one box crosses an edge of another."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools

import warp as wp

EDGE_PROBE = 1 << 24
"""Probes from here on are pairs of edges, 16 * edge of a + edge of b; edge 4 i + j runs along axis i."""


@functools.cache
def make_box_edges(scalar):
    """Return the Warp function (place a, size a, place b, size b, pair) -> (point, normal, depth, weight).

    The normal is across both edges. The weight is smooth, and zero unless the edges cross between their ends, at an
    angle, with the normal between the faces beside each edge: otherwise it is a corner or a face that touches there.
    """
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)

    @wp.func
    def rise(x: scalar, width: scalar):
        """From 0 at -width to 1 at width, twice differentiable."""
        t = wp.clamp(scalar(0.5) + scalar(0.5) * x / width, scalar(0.0), scalar(1.0))
        return t * t * t * (t * (t * scalar(6.0) - scalar(15.0)) + scalar(10.0))

    @wp.func
    def edge_axis(edge: int):
        axis = edge >> 2
        return vec3(
            wp.where(axis == 0, scalar(1.0), scalar(0.0)),
            wp.where(axis == 1, scalar(1.0), scalar(0.0)),
            wp.where(axis == 2, scalar(1.0), scalar(0.0)),
        )

    @wp.func
    def edge_side(edge: int, which: int):
        """Outward normal of one of the two faces beside an edge."""
        axis = ((edge >> 2) + 1 + which) % 3
        sign = scalar(2 * ((edge >> which) & 1) - 1)
        return vec3(
            wp.where(axis == 0, sign, scalar(0.0)),
            wp.where(axis == 1, sign, scalar(0.0)),
            wp.where(axis == 2, sign, scalar(0.0)),
        )

    @wp.func
    def half_edge(edge: int, size: vec3):
        return size[(edge >> 2)]

    @wp.func
    def between_faces(first: scalar, second: scalar):
        """Whether a direction is between two face normals, from its cosines to both."""
        least = scalar(0.05)
        return rise(first + least, least) * rise(second + least, least)

    @wp.func
    def box_edges(place_a: transform, size_a: vec3, place_b: transform, size_b: vec3, pair: int):
        edge_a, edge_b = pair >> 4, pair & 15
        turn_a = wp.transform_get_rotation(place_a)
        turn_b = wp.transform_get_rotation(place_b)
        first_a, second_a = edge_side(edge_a, 0), edge_side(edge_a, 1)
        first_b, second_b = edge_side(edge_b, 0), edge_side(edge_b, 1)
        middle_a = wp.transform_point(place_a, wp.cw_mul(first_a + second_a, size_a))
        middle_b = wp.transform_point(place_b, wp.cw_mul(first_b + second_b, size_b))
        along_a = wp.quat_rotate(turn_a, edge_axis(edge_a))
        along_b = wp.quat_rotate(turn_b, edge_axis(edge_b))
        out_a = wp.quat_rotate(turn_a, first_a + second_a)
        across = wp.cross(along_a, along_b)
        square = wp.dot(across, across)
        up = vec3(scalar(0.0), scalar(0.0), scalar(1.0))
        if square < scalar(0.01):
            return middle_a, up, scalar(0.0), scalar(0.0)
        normal = across / wp.sqrt(square)
        if wp.dot(normal, out_a) > scalar(0.0):
            normal = -normal
        offset = middle_b - middle_a
        t_a = wp.dot(wp.cross(offset, along_b), across) / square
        t_b = wp.dot(wp.cross(offset, along_a), across) / square
        at_a = middle_a + along_a * t_a
        at_b = middle_b + along_b * t_b
        half_a, half_b = half_edge(edge_a, size_a), half_edge(edge_b, size_b)
        end_a, end_b = scalar(0.02) * half_a, scalar(0.02) * half_b
        weight = rise(half_a - wp.abs(t_a), end_a) * rise(half_b - wp.abs(t_b), end_b)
        weight = weight * rise(square - scalar(0.05), scalar(0.04))
        local_a = wp.quat_rotate_inv(turn_a, -normal)
        local_b = wp.quat_rotate_inv(turn_b, normal)
        weight = weight * between_faces(wp.dot(local_a, first_a), wp.dot(local_a, second_a))
        weight = weight * between_faces(wp.dot(local_b, first_b), wp.dot(local_b, second_b))
        depth = wp.dot(at_b - at_a, normal)
        # The far sides of two boxes face each other too, as deep as the boxes are thick.
        thin = wp.min(wp.min(size_a), wp.min(size_b))
        weight = weight * rise(scalar(0.4) * thin - depth, scalar(0.2) * thin)
        return (at_a + at_b) * scalar(0.5), normal, depth, weight

    return box_edges
