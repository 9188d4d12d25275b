"""Kernels for the `edge` silhouette rule: blend layers across the occluding contours near a pixel.

An edge is a contour where the surface turns away from the camera: both faces lie on one side of it in the image, or
it has one face only. A pixel on that side (inside) loses coverage towards the contour; a pixel on the other side
(outside) gains a fringe of the contour's surface. Composited front to back per pixel:

    fringe in front of layer 0, layer 0, fringe between layers 0 and 1, layer 1, layer 2, background

The coverage of a layer is profile(+d) with d the distance to its nearest visible contour, that of a fringe
profile(-d); profile is a quintic step of compact support, 1/2 at 0. Both sides meet at 1/2 with equal values, so the
image is continuous where a contour sweeps over a pixel, and the 1/2 level of alpha is the outline itself. The depth
of a fringe is the mean log depth of the contours near the pixel, weighted towards the nearest.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import layers


@functools.cache
def make(scalar):
    """Kernel `gather` for one scalar type, and the functions that its adjoint shares with it."""
    shared = layers.make(scalar)
    vec2, vec3, vec4 = shared.vec2, shared.vec3, shared.vec4
    project, unproject = shared.project, shared.unproject
    pixel_span, tile_bounds = shared.pixel_span, shared.tile_bounds
    module = wp.get_module(f"gradpath.render.contours_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))
    # At a corner two contours are equally near; the first keeps the pixel, whatever the rounding.
    nearer = wp.constant(scalar(1.0 - (1.0e-5 if scalar is wp.float32 else 1.0e-10)))

    @wp.struct
    class Contour:
        """A contour edge clipped to the near plane, in the camera frame and in pixels."""

        side: scalar  # sign of the cross product with the edge that means inside; 0: not a contour
        a: vec3
        b: vec3
        cut_a: scalar  # share of the edge that the near plane cuts off at a, and at b
        cut_b: scalar
        start: vec2
        along: vec2
        inverse_length2: scalar
        inverse_a: scalar  # inverse depths of the ends
        inverse_b: scalar

    @wp.struct
    class Contact:
        """The point of a contour that is closest to a pixel."""

        distance: scalar
        t: scalar
        away: vec2  # unit vector from the contour point to the pixel
        z: scalar
        inside: wp.bool
        clamped: wp.bool  # the closest point is an end of the edge

    @wp.func
    def contour_side(a: vec3, b: vec3, c: vec3, d: vec3, closed_pair: int, is_open: int):
        m = wp.cross(a, b)
        s = wp.dot(m, c)
        if closed_pair == 0:
            return wp.sign(s)
        front_c = s < zero
        front_d = wp.dot(m, d) > zero
        if front_c == front_d:
            return zero
        # Where a closed surface folds inwards, the face behind the edge hides it.
        if is_open == 0 and wp.dot(wp.cross(b - a, c - a), d - a) > zero:
            return zero
        if front_c:
            return -one
        return one

    @wp.func
    def find_contour(
        b: int, edge: wp.vec4i, is_open: int, points: wp.array2d(dtype=vec3), camera: vec4, limits: vec3
    ):
        contour = Contour()
        contour.side = zero
        p = points[b, edge[0]]
        q = points[b, edge[1]]
        near = limits[0]
        if wp.max(p[2], q[2]) <= near or wp.min(p[2], q[2]) >= limits[1]:
            return contour
        closed_pair = int(0)
        opposite = p
        if edge[3] >= 0:
            closed_pair = 1
            opposite = points[b, edge[3]]
        side = contour_side(p, q, points[b, edge[2]], opposite, closed_pair, is_open)
        if side == zero:
            return contour
        contour.cut_a = zero
        contour.cut_b = zero
        contour.a = p
        contour.b = q
        if p[2] < near:
            contour.cut_a = (near - p[2]) / (q[2] - p[2])
            contour.a = p + (q - p) * contour.cut_a
        if q[2] < near:
            contour.cut_b = (near - q[2]) / (p[2] - q[2])
            contour.b = q + (p - q) * contour.cut_b
        contour.start = project(contour.a, camera)
        contour.along = project(contour.b, camera) - contour.start
        length2 = wp.dot(contour.along, contour.along)
        if length2 <= zero:
            return contour
        contour.inverse_length2 = one / length2
        contour.inverse_a = one / contour.a[2]
        contour.inverse_b = one / contour.b[2]
        contour.side = side
        return contour

    @wp.func
    def row_span(contour: Contour, y: int, x0: int, x1: int, radius: scalar):
        """Shrink the pixels x0 to x1 of a row to those within `radius` of the edge's line."""
        e = contour.along
        reach = radius / wp.sqrt(contour.inverse_length2)
        if wp.abs(e[1]) * scalar(1.0e6) > wp.abs(e[0]):
            slope = one / e[1]
            middle = contour.start[0] + e[0] * slope * (scalar(y) + half - contour.start[1])
            margin = reach * wp.abs(slope)
            begin, end = pixel_span(middle, middle, margin, x0, x1 + 1)
            return begin, end
        return x0, x1

    @wp.func
    def touch(contour: Contour, x: int, y: int, radius: scalar):
        """Closest point of a contour to a pixel centre; a distance of at least `radius` means none."""
        contact = Contact()
        w = vec2(scalar(x) + half - contour.start[0], scalar(y) + half - contour.start[1])
        e = contour.along
        t = wp.clamp(wp.dot(w, e) * contour.inverse_length2, zero, one)
        away = w - e * t
        contact.distance = radius
        d2 = wp.dot(away, away)
        if d2 >= radius * radius:
            return contact
        distance = wp.sqrt(d2)
        turn = (e[0] * w[1] - e[1] * w[0]) * contour.side
        contact.inside = turn >= zero
        contact.clamped = t <= zero or t >= one
        contact.t = t
        contact.distance = distance
        contact.z = one / (contour.inverse_a + t * (contour.inverse_b - contour.inverse_a))
        if contact.clamped:
            contact.away = away / wp.max(distance, scalar(1.0e-12))
        else:
            # The line's own normal: defined on the line too.
            s = wp.sqrt(contour.inverse_length2) * contour.side
            if not contact.inside:
                s = -s
            contact.away = vec2(-e[1] * s, e[0] * s)
        return contact

    @wp.func
    def component(face: int, face_info: wp.array(dtype=wp.vec2i)):
        if face < 0:
            return -1
        return face_info[face][0]

    @wp.func
    def fringe_slot(contact: Contact, owner: int, depths: vec3, owner_0: int, owner_1: int):
        """Which fringe a contour outside of its surface feeds: 0 before the first layer, 1 before the second."""
        if contact.clamped and (owner == owner_0 or owner == owner_1):
            return -1  # at a corner of its own outline, the pixel is covered by the surface itself
        if contact.z < depths[0]:
            return 0
        if contact.z < depths[1]:
            return 1
        return -1

    @wp.func
    def bordered_layer(
        b: int,
        x: int,
        y: int,
        contact: Contact,
        owner: int,
        owner_0: int,
        owner_1: int,
        depths: wp.array3d(dtype=vec3),
    ):
        """Which layer of the pixel ends at this contour, if the contour can be seen just beyond the surface; or -1."""
        layer = int(-1)
        if owner == owner_0:
            layer = 0
        if owner == owner_1:
            here = depths[b, y, x]
            gap_0 = wp.max(here[0], contact.z) / wp.min(here[0], contact.z)
            gap_1 = wp.max(here[1], contact.z) / wp.min(here[1], contact.z)
            if layer == -1 or gap_1 < gap_0:
                layer = 1
        if layer >= 0:
            # 3/4 of a pixel beyond, the nearest pixel centre is surely across the line.
            reach = contact.distance + scalar(0.75)
            u = int(wp.floor(scalar(x) + half - contact.away[0] * reach))
            v = int(wp.floor(scalar(y) + half - contact.away[1] * reach))
            if u >= 0 and v >= 0 and u < depths.shape[2] and v < depths.shape[1]:
                if depths[b, v, u][layer] < contact.z:
                    return -1
        return layer

    @wp.func
    def nearness(distance: scalar, radius: scalar):
        """Weight of a contour in the fringe's depth, and its derivative; twice differentiable, zero from the radius."""
        x = distance / radius
        u = one - x
        w = one / (x * x + scalar(0.01))
        return u * u * u * w, -(scalar(3.0) * u * u * w + scalar(2.0) * x * u * u * u * w * w) / radius

    @wp.kernel(module=module, enable_backward=False)
    def _gather_contours(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E: a, b, and the vertices opposite
        edge_info: wp.array(dtype=wp.vec2i),  # E: component, open
        face_info: wp.array(dtype=wp.vec2i),  # F: component, open
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        cameras: wp.array(dtype=vec4),  # B: fx, fy, cx, cy
        limits: vec3,  # near, far, radius
        tile: wp.vec2i,
        depths: wp.array3d(dtype=vec3),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        # Out:
        distances: wp.array3d(
            dtype=vec4
        ),  # B H W, filled with the radius: inside layers 0, 1, outside before them
        nearest: wp.array3d(dtype=wp.vec4i),  # B H W, filled with -1: the edges of those distances
        sums: wp.array3d(
            dtype=vec4
        ),  # B H W, zeroed: fringe weight and weighted log depth, before layers 0, 1
    ):
        world, block = wp.tid()
        b = first + world
        left, top, right, bottom = tile_bounds(block, tile, depths.shape[1], depths.shape[2])
        radius = limits[2]
        camera = cameras[b]
        for e in range(edges.shape[0]):
            contour = find_contour(b, edges[e], edge_info[e][1], points, camera, limits)
            if contour.side != zero:
                finish = contour.start + contour.along
                x0, x1 = pixel_span(
                    wp.min(contour.start[0], finish[0]),
                    wp.max(contour.start[0], finish[0]),
                    radius,
                    left,
                    right,
                )
                y0, y1 = pixel_span(
                    wp.min(contour.start[1], finish[1]),
                    wp.max(contour.start[1], finish[1]),
                    radius,
                    top,
                    bottom,
                )
                owner = edge_info[e][0]
                for y in range(y0, y1 + 1):
                    begin, end = row_span(contour, y, x0, x1, radius)
                    for x in range(begin, end + 1):
                        contact = touch(contour, x, y, radius)
                        if contact.distance < radius and contact.z < limits[1]:
                            owner_0 = component(hits[b, y, x][0], face_info)
                            owner_1 = component(hits[b, y, x][1], face_info)
                            slot = int(-1)
                            if contact.inside:
                                slot = bordered_layer(b, x, y, contact, owner, owner_0, owner_1, depths)
                            else:
                                slot = fringe_slot(contact, owner, depths[b, y, x], owner_0, owner_1)
                                if slot >= 0:
                                    weight, _ = nearness(contact.distance, radius)
                                    total = sums[b, y, x]
                                    total[2 * slot] += weight
                                    total[2 * slot + 1] += weight * wp.log(contact.z)
                                    sums[b, y, x] = total
                                    slot += 2
                            if slot >= 0:
                                d = distances[b, y, x]
                                n = nearest[b, y, x]
                                if contact.distance < d[slot] * nearer or n[slot] < 0:
                                    d[slot] = contact.distance
                                    distances[b, y, x] = d
                                    n[slot] = e
                                    nearest[b, y, x] = n

    @wp.func
    def spread_contour(
        b: int,
        edge: wp.vec4i,
        contour: Contour,
        g_start: vec2,
        g_finish: vec2,
        g_inverse: vec2,
        g_cut: vec2,
        points: wp.array2d(dtype=vec3),
        camera: vec4,
        g_points: wp.array2d(dtype=vec3),
        g_cameras: wp.array(dtype=vec4),
    ):
        """Add the gradients of the ends in pixels, of inverse depths and of cuts to the vertices and the intrinsics."""
        g_a = unproject(contour.a, g_start, g_inverse[0], camera)
        g_b = unproject(contour.b, g_finish, g_inverse[1], camera)
        ra = contour.a * contour.inverse_a
        rb = contour.b * contour.inverse_b
        wp.atomic_add(
            g_cameras,
            b,
            vec4(
                g_start[0] * ra[0] + g_finish[0] * rb[0],
                g_start[1] * ra[1] + g_finish[1] * rb[1],
                g_start[0] + g_finish[0],
                g_start[1] + g_finish[1],
            ),
        )
        p = points[b, edge[0]]
        q = points[b, edge[1]]
        # A clipped end is p + (q - p) cut with cut = (near - p.z) / (q.z - p.z): its depth stays at the near plane.
        rise = q[2] - p[2]
        along = (q - p) / rise
        if contour.cut_a > zero:
            sliding = wp.dot(g_a, along) + g_cut[0] / rise
            kept = one - contour.cut_a
            g_b += g_a * contour.cut_a - vec3(zero, zero, sliding * contour.cut_a)
            g_a = g_a * kept - vec3(zero, zero, sliding * kept)
        if contour.cut_b > zero:
            sliding = wp.dot(g_b, along) - g_cut[1] / rise
            kept = one - contour.cut_b
            g_a += g_b * contour.cut_b - vec3(zero, zero, sliding * contour.cut_b)
            g_b = g_b * kept - vec3(zero, zero, sliding * kept)
        wp.atomic_add(g_points, b, edge[0], g_a)
        wp.atomic_add(g_points, b, edge[1], g_b)

    return SimpleNamespace(
        spread_contour=spread_contour,
        find_contour=find_contour,
        row_span=row_span,
        touch=touch,
        component=component,
        fringe_slot=fringe_slot,
        nearness=nearness,
        gather=_gather_contours,
    )
