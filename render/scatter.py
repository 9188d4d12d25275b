"""Kernel of the adjoint of gathering: from what each pixel saw of its contours back to the ends of their edges.

One thread per edge walks over the pixels that gathered it.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import contours, layers


@functools.cache
def make(scalar):
    """Kernel `scatter` for one scalar type, and the function `spread_ends`."""
    shared, found = layers.make(scalar), contours.make(scalar)
    vec2, vec3, vec4 = shared.vec2, shared.vec3, shared.vec4
    unproject, centre_of = shared.unproject, shared.centre_of
    Contour, Contact, touch = found.Contour, found.Contact, found.touch
    find_contour, contour_box, row_span = found.find_contour, found.contour_box, found.row_span
    seen_depths, owners = found.seen_depths, found.owners
    fringe_slot, nearness = found.fringe_slot, found.nearness
    module = wp.get_module(f"gradpath.render.scatter_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))

    @wp.struct
    class Pull:
        """Gradient of a contour's ends."""

        start: vec2  # of their places in the image
        finish: vec2
        inverse: vec2  # of their inverse depths
        cut: vec2  # of the shares that the near plane cuts off

    @wp.func
    def spread_ends(p: vec3, q: vec3, contour: Contour, pull: Pull):
        """Gradient of the vertices p and q at the ends of an edge."""
        g_a = unproject(contour.a, pull.start, pull.inverse[0])
        g_b = unproject(contour.b, pull.finish, pull.inverse[1])
        # A clipped end is p + (q - p) cut with cut = (near - p.z) / (q.z - p.z): its depth stays at the near plane.
        rise = q[2] - p[2]
        along = (q - p) / rise
        if contour.cut_a > zero:
            sliding = wp.dot(g_a, along) + pull.cut[0] / rise
            kept = one - contour.cut_a
            g_b += g_a * contour.cut_a - vec3(zero, zero, sliding * contour.cut_a)
            g_a = g_a * kept - vec3(zero, zero, sliding * kept)
        if contour.cut_b > zero:
            sliding = wp.dot(g_b, along) - pull.cut[1] / rise
            kept = one - contour.cut_b
            g_a += g_b * contour.cut_b - vec3(zero, zero, sliding * contour.cut_b)
            g_b = g_b * kept - vec3(zero, zero, sliding * kept)
        return g_a, g_b

    @wp.func
    def pull_at(contour: Contour, contact: Contact, x: int, y: int, g_distance: scalar, g_log: scalar):
        """Gradient of the ends from that of one pixel's distance and log depth."""
        pull = Pull()
        t = contact.t
        g_inverse = -g_log * contact.z
        pull.start = contact.away * (g_distance * (t - one))
        pull.finish = contact.away * (-g_distance * t)
        pull.inverse = vec2(g_inverse * (one - t), g_inverse * t)
        if not contact.clamped:
            # t = w.e / e.e moves with both ends of the edge.
            g_t = g_inverse * (contour.inverse_b - contour.inverse_a) * contour.inverse_length2
            w = vec2(scalar(x) + half - contour.start[0], scalar(y) + half - contour.start[1])
            turn = w - contour.along * (scalar(2.0) * t)
            pull.start -= (turn + contour.along) * g_t
            pull.finish += turn * g_t
        return pull

    @wp.func
    def gradient_inside(e: int, nearest: wp.vec4i, g: vec4):
        """Gradient of the distance to contour e, where it ends one of the pixel's layers."""
        out = zero
        if nearest[0] == e:
            out += g[0]
        if nearest[1] == e:
            out += g[1]
        return out

    @wp.func
    def gradient_outside(
        e: int, slot: int, contact: Contact, radius: scalar, nearest: wp.vec4i, g: vec4, fringe: vec4
    ):
        """Gradient of the distance to contour e and of its log depth, where it feeds a fringe of the pixel."""
        weight, slope = nearness(contact.distance, radius)
        out = slope * fringe[2 * slot] * (wp.log(contact.z) - fringe[2 * slot + 1])
        if nearest[slot + 2] == e:
            out += g[slot + 2]
        return out, weight * fringe[2 * slot]

    @wp.kernel(module=module, enable_backward=False)
    def _scatter_contours(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E
        edge_info: wp.array(dtype=wp.vec2i),  # E
        face_info: wp.array(dtype=wp.vec2i),  # F
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        limits: vec3,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        depths: wp.array3d(dtype=vec3),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        records: wp.array3d(dtype=wp.int32),  # B H W
        nearest: wp.array(dtype=wp.vec4i),  # N
        g_distances: wp.array(dtype=vec4),  # N
        fringes: wp.array(dtype=vec4),  # N
        # Out:
        ends: wp.array3d(dtype=vec3),  # B E 2: gradient of the ends of each edge
    ):
        item = first + wp.tid()
        b = item // edges.shape[0]
        e = item - b * edges.shape[0]
        edge = edges[e]
        tile = wp.vec4i(0, 0, covered.shape[2], covered.shape[1])
        centre = centre_of(covered.shape[1], covered.shape[2])
        contour = find_contour(b, edge, edge_info[e][1], points, limits, tile, centre)
        if contour.side == zero:
            for k in range(2):
                ends[b, e, k] = vec3(zero, zero, zero)
            return
        total, radius = Pull(), limits[2]
        box = contour_box(contour, radius, tile)
        for y in range(box[1], box[3] + 1):
            begin, end = row_span(contour, y, box[0], box[2], radius)
            for x in range(begin, end + 1):
                r = records[b, y, x] - 1
                if r >= 0:
                    contact = touch(contour, x, y, radius)
                    if contact.distance < radius and contact.z < limits[1]:
                        g_distance = scalar(0.0)
                        g_log = scalar(0.0)
                        if contact.inside:
                            g_distance = gradient_inside(e, nearest[r], g_distances[r])
                        else:
                            others = owners(b, y, x, covered, hits, face_info)
                            before = seen_depths(b, y, x, covered, depths)
                            slot = fringe_slot(contact, edge_info[e][0], before, others)
                            if slot >= 0:
                                n = nearest[r]
                                g = g_distances[r]
                                g_distance, g_log = gradient_outside(
                                    e, slot, contact, radius, n, g, fringes[r]
                                )
                        pull = pull_at(contour, contact, x, y, g_distance, g_log)
                        total.start += pull.start
                        total.finish += pull.finish
                        total.inverse += pull.inverse
        g_p, g_q = spread_ends(points[b, edge[0]], points[b, edge[1]], contour, total)
        ends[b, e, 0] = g_p
        ends[b, e, 1] = g_q

    return SimpleNamespace(Pull=Pull, spread_ends=spread_ends, scatter=_scatter_contours)
