"""Kernel of the adjoint of gathering: from what each pixel saw of its contours back to the ends of their edges.

One thread per edge walks over the pixels that gathered it; only the ends of edges are then summed by atomics.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import contours, layers


@functools.cache
def make(scalar):
    """Kernel `scatter` for one scalar type."""
    shared, found = layers.make(scalar), contours.make(scalar)
    vec2, vec3, vec4 = shared.vec2, shared.vec3, shared.vec4
    pixel_span, spread_contour = shared.pixel_span, found.spread_contour
    find_contour, row_span, touch = found.find_contour, found.row_span, found.touch
    component, fringe_slot, nearness = found.component, found.fringe_slot, found.nearness
    module = wp.get_module(f"gradpath.render.scatter_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))

    @wp.kernel(module=module, enable_backward=False)
    def _scatter_contours(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E
        edge_info: wp.array(dtype=wp.vec2i),  # E
        face_info: wp.array(dtype=wp.vec2i),  # F
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        cameras: wp.array(dtype=vec4),  # B
        limits: vec3,
        depths: wp.array3d(dtype=vec3),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        nearest: wp.array3d(dtype=wp.vec4i),  # B H W
        g_distances: wp.array3d(dtype=vec4),  # B H W
        fringes: wp.array3d(dtype=vec4),  # B H W
        # Out:
        g_points: wp.array2d(dtype=vec3),  # B V
        g_cameras: wp.array(dtype=vec4),  # B
    ):
        world, e = wp.tid()
        b = first + world
        camera = cameras[b]
        contour = find_contour(b, edges[e], edge_info[e][1], points, camera, limits)
        if contour.side == zero:
            return
        radius = limits[2]
        finish = contour.start + contour.along
        x0, x1 = pixel_span(
            wp.min(contour.start[0], finish[0]),
            wp.max(contour.start[0], finish[0]),
            radius,
            0,
            depths.shape[2],
        )
        y0, y1 = pixel_span(
            wp.min(contour.start[1], finish[1]),
            wp.max(contour.start[1], finish[1]),
            radius,
            0,
            depths.shape[1],
        )
        owner = edge_info[e][0]
        g_start = vec2(zero, zero)
        g_finish = vec2(zero, zero)
        g_inverse_a = scalar(0.0)
        g_inverse_b = scalar(0.0)
        spread = contour.inverse_b - contour.inverse_a
        for y in range(y0, y1 + 1):
            begin, end = row_span(contour, y, x0, x1, radius)
            for x in range(begin, end + 1):
                contact = touch(contour, x, y, radius)
                if contact.distance < radius and contact.z < limits[1]:
                    n = nearest[b, y, x]
                    g = g_distances[b, y, x]
                    g_distance = scalar(0.0)
                    g_log = scalar(0.0)
                    if contact.inside:
                        if n[0] == e:
                            g_distance += g[0]
                        if n[1] == e:
                            g_distance += g[1]
                    else:
                        owner_0 = component(hits[b, y, x][0], face_info)
                        owner_1 = component(hits[b, y, x][1], face_info)
                        slot = fringe_slot(contact, owner, depths[b, y, x], owner_0, owner_1)
                        if slot >= 0:
                            fringe = fringes[b, y, x]
                            weight, slope = nearness(contact.distance, radius)
                            g_log = weight * fringe[2 * slot]
                            g_distance = slope * fringe[2 * slot] * (wp.log(contact.z) - fringe[2 * slot + 1])
                            if n[slot + 2] == e:
                                g_distance += g[slot + 2]
                    t = contact.t
                    g_start -= contact.away * (g_distance * (one - t))
                    g_finish -= contact.away * (g_distance * t)
                    g_inverse = -g_log * contact.z
                    g_inverse_a += g_inverse * (one - t)
                    g_inverse_b += g_inverse * t
                    if not contact.clamped:
                        # t = w.e / e.e moves with both ends of the edge.
                        g_t = g_inverse * spread * contour.inverse_length2
                        w = vec2(scalar(x) + half - contour.start[0], scalar(y) + half - contour.start[1])
                        turn = w - contour.along * (scalar(2.0) * t)
                        g_start -= (turn + contour.along) * g_t
                        g_finish += turn * g_t
        spread_contour(
            b,
            edges[e],
            contour,
            g_start,
            g_finish,
            vec2(g_inverse_a, g_inverse_b),
            vec2(zero, zero),
            points,
            camera,
            g_points,
            g_cameras,
        )

    return SimpleNamespace(scatter=_scatter_contours)
