"""Kernels that read vertex attributes off what a pixel sees, and send gradients back to attributes and geometry.

What a pixel sees is up to five pieces of surface: the points where its ray meets the three layers, and for each of the
two fringes the point of its nearest contour that is closest to the pixel. At each of them any attribute is interpolated
linearly in space, which is perspective-correct in the image.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import contours, layers


@functools.cache
def make(scalar):
    """Kernels `layers` and `fringes` for one scalar type, and their adjoints `unlayers` and `unfringes`."""
    shared, found = layers.make(scalar), contours.make(scalar)
    vec2, vec3, vec4, pixel_ray = shared.vec2, shared.vec3, shared.vec4, shared.pixel_ray
    find_contour, touch, spread_contour = found.find_contour, found.touch, found.spread_contour
    module = wp.get_module(f"gradpath.render.interpolate_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))

    @wp.func
    def facing(b: int, edge: wp.vec4i, is_open: int, points: wp.array2d(dtype=vec3)):
        """Which of the two faces of a contour can be seen beside it: 0 or 1."""
        if edge[3] < 0:
            return 0
        p = points[b, edge[0]]
        q = points[b, edge[1]]
        c = points[b, edge[2]]
        front = wp.dot(wp.cross(p, q), c) < zero
        # Where an open surface folds inwards, the face that shows its back is the nearer one.
        if is_open == 1 and wp.dot(wp.cross(q - p, c - p), points[b, edge[3]] - p) > zero:
            front = not front
        if front:
            return 0
        return 1

    @wp.kernel(module=module, enable_backward=False)
    def _interpolate_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F: vertices
        corners: wp.array(dtype=wp.vec3i),  # F: rows of `attributes`
        slots: wp.vec3i,  # place of the layers among the pieces, -1 for none
        # In:
        points: wp.array2d(dtype=vec3),  # B V, camera frame
        cameras: wp.array(dtype=vec4),  # B
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        attributes: wp.array3d(dtype=scalar),  # B A C
        # Out:
        values: wp.array4d(dtype=scalar),  # B H W (pieces C)
    ):
        world, y, x = wp.tid()
        b = first + world
        channels = attributes.shape[2]
        ray = pixel_ray(x, y, cameras[b])
        for k in range(3):
            f = hits[b, y, x][k]
            if slots[k] >= 0:
                start = slots[k] * channels
                if f >= 0:
                    face = faces[f]
                    corner = corners[f]
                    p0 = points[b, face[0]]
                    p1 = points[b, face[1]]
                    p2 = points[b, face[2]]
                    w0 = wp.dot(wp.cross(p1, p2), ray)
                    w1 = wp.dot(wp.cross(p2, p0), ray)
                    w2 = wp.dot(wp.cross(p0, p1), ray)
                    inverse = one / (w0 + w1 + w2)
                    w0 = w0 * inverse
                    w1 = w1 * inverse
                    w2 = w2 * inverse
                    for c in range(channels):
                        values[b, y, x, start + c] = (
                            w0 * attributes[b, corner[0], c]
                            + w1 * attributes[b, corner[1], c]
                            + w2 * attributes[b, corner[2], c]
                        )
                else:
                    for c in range(channels):
                        values[b, y, x, start + c] = zero

    @wp.kernel(module=module, enable_backward=False)
    def _uninterpolate_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        corners: wp.array(dtype=wp.vec3i),  # F
        slots: wp.vec3i,
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        cameras: wp.array(dtype=vec4),  # B
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        attributes: wp.array3d(dtype=scalar),  # B A C
        g_values: wp.array4d(dtype=scalar),  # B H W (pieces C)
        # Out:
        g_points: wp.array2d(dtype=vec3),  # B V
        g_cameras: wp.array(dtype=vec4),  # B
        g_attributes: wp.array3d(dtype=scalar),  # B A C
    ):
        world, y, x = wp.tid()
        b = first + world
        channels = attributes.shape[2]
        camera = cameras[b]
        ray = pixel_ray(x, y, camera)
        for k in range(3):
            f = hits[b, y, x][k]
            if slots[k] >= 0 and f >= 0:
                start = slots[k] * channels
                face = faces[f]
                corner = corners[f]
                p0 = points[b, face[0]]
                p1 = points[b, face[1]]
                p2 = points[b, face[2]]
                m0 = wp.cross(p1, p2)
                m1 = wp.cross(p2, p0)
                m2 = wp.cross(p0, p1)
                inverse = one / wp.dot(m0 + m1 + m2, ray)
                w = vec3(wp.dot(m0, ray), wp.dot(m1, ray), wp.dot(m2, ray)) * inverse
                g_w = vec3(zero, zero, zero)
                for c in range(channels):
                    g = g_values[b, y, x, start + c]
                    if g != zero:
                        g_w += g * vec3(
                            attributes[b, corner[0], c],
                            attributes[b, corner[1], c],
                            attributes[b, corner[2], c],
                        )
                        wp.atomic_add(g_attributes, b, corner[0], c, g * w[0])
                        wp.atomic_add(g_attributes, b, corner[1], c, g * w[1])
                        wp.atomic_add(g_attributes, b, corner[2], c, g * w[2])
                # The weights are inverse([p0 p1 p2]) ray, scaled to the sum 1.
                mean = wp.dot(g_w, w)
                turned = (m0 * (g_w[0] - mean) + m1 * (g_w[1] - mean) + m2 * (g_w[2] - mean)) * inverse
                pull = turned / (wp.dot(p0, m0) * inverse)
                wp.atomic_add(g_points, b, face[0], -w[0] * pull)
                wp.atomic_add(g_points, b, face[1], -w[1] * pull)
                wp.atomic_add(g_points, b, face[2], -w[2] * pull)
                gx = -turned[0] / camera[0]
                gy = -turned[1] / camera[1]
                wp.atomic_add(g_cameras, b, vec4(gx * ray[0], gy * ray[1], gx, gy))

    @wp.kernel(module=module, enable_backward=False)
    def _interpolate_fringes(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E
        edge_info: wp.array(dtype=wp.vec2i),  # E
        ends: wp.array(
            dtype=wp.vec4i
        ),  # E: rows of `attributes` at both ends, in the first face and the second
        # In:
        points: wp.array2d(dtype=vec3),  # B V, camera frame
        cameras: wp.array(dtype=vec4),  # B
        limits: vec3,  # near, far, radius
        nearest: wp.array3d(dtype=wp.vec4i),  # B H W
        attributes: wp.array3d(dtype=scalar),  # B A C
        # Out:
        values: wp.array4d(dtype=scalar),  # B H W (pieces C)
    ):
        world, y, x = wp.tid()
        b = first + world
        channels = attributes.shape[2]
        for k in range(2):
            e = nearest[b, y, x][2 + k]
            start = 2 * k * channels
            if e >= 0:
                contour = find_contour(b, edges[e], edge_info[e][1], points, cameras[b], limits)
                contact = touch(contour, x, y, limits[2])
                side = 2 * facing(b, edges[e], edge_info[e][1], points)
                i = ends[e][side]
                j = ends[e][side + 1]
                part = contact.t * contour.inverse_b * contact.z
                share = (one - part) * contour.cut_a + part * (one - contour.cut_b)
                for c in range(channels):
                    values[b, y, x, start + c] = (
                        attributes[b, i, c] * (one - share) + attributes[b, j, c] * share
                    )
            else:
                for c in range(channels):
                    values[b, y, x, start + c] = zero

    @wp.kernel(module=module, enable_backward=False)
    def _uninterpolate_fringes(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E
        edge_info: wp.array(dtype=wp.vec2i),  # E
        ends: wp.array(dtype=wp.vec4i),  # E
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        cameras: wp.array(dtype=vec4),  # B
        limits: vec3,
        nearest: wp.array3d(dtype=wp.vec4i),  # B H W
        attributes: wp.array3d(dtype=scalar),  # B A C
        g_values: wp.array4d(dtype=scalar),  # B H W (pieces C)
        # Out:
        g_points: wp.array2d(dtype=vec3),  # B V
        g_cameras: wp.array(dtype=vec4),  # B
        g_attributes: wp.array3d(dtype=scalar),  # B A C
    ):
        world, y, x = wp.tid()
        b = first + world
        channels = attributes.shape[2]
        for k in range(2):
            e = nearest[b, y, x][2 + k]
            start = 2 * k * channels
            if e >= 0:
                contour = find_contour(b, edges[e], edge_info[e][1], points, cameras[b], limits)
                contact = touch(contour, x, y, limits[2])
                side = 2 * facing(b, edges[e], edge_info[e][1], points)
                i = ends[e][side]
                j = ends[e][side + 1]
                part = contact.t * contour.inverse_b * contact.z
                share = (one - part) * contour.cut_a + part * (one - contour.cut_b)
                g_share = zero
                for c in range(channels):
                    g = g_values[b, y, x, start + c]
                    if g != zero:
                        g_share += g * (attributes[b, j, c] - attributes[b, i, c])
                        wp.atomic_add(g_attributes, b, i, c, g * (one - share))
                        wp.atomic_add(g_attributes, b, j, c, g * share)
                g_part = g_share * (one - contour.cut_a - contour.cut_b)
                g_start = vec2(zero, zero)
                g_finish = vec2(zero, zero)
                if not contact.clamped:
                    # part = t / z_b : (1 - t) / z_a, and t = w.e / e.e moves with both ends of the edge.
                    g_t = g_part * contour.inverse_a * contour.inverse_b * contact.z * contact.z
                    g_t = g_t * contour.inverse_length2
                    w = vec2(scalar(x) + half - contour.start[0], scalar(y) + half - contour.start[1])
                    turn = w - contour.along * (scalar(2.0) * contact.t)
                    g_start = -(turn + contour.along) * g_t
                    g_finish = turn * g_t
                spread = g_part * part * (one - part)
                spread_contour(
                    b,
                    edges[e],
                    contour,
                    g_start,
                    g_finish,
                    vec2(-spread / contour.inverse_a, spread / contour.inverse_b),
                    vec2(g_share * (one - part), -g_share * part),
                    points,
                    cameras[b],
                    g_points,
                    g_cameras,
                )

    return SimpleNamespace(
        layers=_interpolate_layers,
        unlayers=_uninterpolate_layers,
        fringes=_interpolate_fringes,
        unfringes=_uninterpolate_fringes,
    )
