"""Kernels for the `edge` silhouette rule: blend layers across the occluding contours near a pixel.

An edge is a contour where the surface turns away from the camera: both faces lie on one side of it in the image, or
it has one face only. A pixel on that side (inside) loses coverage towards the contour; a pixel on the other side
(outside) gains a fringe of the contour's surface. Composited front to back per pixel:

    fringe in front of layer 0, layer 0, fringe between layers 0 and 1, layer 1, layer 2, background

The coverage of a layer is profile(+d) with d the distance to its nearest visible contour, that of a fringe
profile(-d); profile is a quintic step of compact support, 1/2 at 0. Both sides meet at 1/2 with equal values, so the
image is continuous where a contour sweeps over a pixel, and the 1/2 level of alpha is the outline itself. The depth
of a fringe is the mean log depth of the contours near the pixel, weighted towards the nearest.

Only pixels near a contour have any of this. It is kept in records, which every thread numbers from the first place of
its block of pixels on, so that memory between the last of them and the next block is never touched.
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
    vec2, vec3, vec4, nothing = shared.vec2, shared.vec3, shared.vec4, shared.nothing
    project, pixel_span, find_tile = shared.project, shared.pixel_span, shared.find_tile
    centre_of, is_aside = shared.centre_of, shared.is_aside
    module = wp.get_module(f"gradpath.render.contours_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))
    # At a corner two contours are equally near; the first keeps the pixel, whatever the rounding.
    nearer = wp.constant(scalar(1.0 - (1.0e-5 if scalar is wp.float32 else 1.0e-10)))

    @wp.struct
    class Contour:
        """A contour edge clipped to the near plane, in homogeneous coordinates and in pixels."""

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
        b: int,
        edge: wp.vec4i,
        is_open: int,
        points: wp.array2d(dtype=vec3),
        limits: vec3,
        tile: wp.vec4i,
        centre: vec2,
    ):
        """The contour that an edge is, within the radius of the rows of a tile (left, top, right, bottom)."""
        contour = Contour()
        contour.side = zero
        p = points[b, edge[0]]
        q = points[b, edge[1]]
        near = limits[0]
        if wp.max(p[2], q[2]) <= near or wp.min(p[2], q[2]) >= limits[1]:
            return contour
        top = scalar(tile[1]) - limits[2] - centre[1]
        bottom = scalar(tile[3]) + limits[2] - centre[1]
        if is_aside(p, q, q, top, bottom):
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
        contour.start = project(contour.a, centre)
        contour.along = project(contour.b, centre) - contour.start
        length2 = wp.dot(contour.along, contour.along)
        if length2 <= zero:
            return contour
        contour.inverse_length2 = one / length2
        contour.inverse_a = one / contour.a[2]
        contour.inverse_b = one / contour.b[2]
        contour.side = side
        return contour

    @wp.func
    def contour_box(contour: Contour, radius: scalar, tile: wp.vec4i):
        """First and last column and row of the pixels of a tile that may be within `radius` of a contour."""
        a = contour.start
        b = contour.start + contour.along
        x0, x1 = pixel_span(wp.min(a[0], b[0]), wp.max(a[0], b[0]), radius, tile[0], tile[2])
        y0, y1 = pixel_span(wp.min(a[1], b[1]), wp.max(a[1], b[1]), radius, tile[1], tile[3])
        return wp.vec4i(x0, y0, x1, y1)

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
    def seen_depths(
        b: int, y: int, x: int, covered: wp.array3d(dtype=wp.uint8), depths: wp.array3d(dtype=vec3)
    ):
        if covered[b, y, x] == wp.uint8(0):
            return vec3(nothing, nothing, nothing)
        return depths[b, y, x]

    @wp.func
    def owners(
        b: int,
        y: int,
        x: int,
        covered: wp.array3d(dtype=wp.uint8),
        hits: wp.array3d(dtype=wp.vec3i),
        face_info: wp.array(dtype=wp.vec2i),
    ):
        """Components of the first two layers of a pixel, -1 for none."""
        out = wp.vec2i(-1, -1)
        if covered[b, y, x] != wp.uint8(0):
            hit = hits[b, y, x]
            out[0] = face_info[hit[0]][0]
            if hit[1] >= 0:
                out[1] = face_info[hit[1]][0]
        return out

    @wp.func
    def fringe_slot(contact: Contact, owner: int, depths: vec3, others: wp.vec2i):
        """Which fringe a contour outside of its surface feeds: 0 before the first layer, 1 before the second."""
        if contact.clamped and (owner == others[0] or owner == others[1]):
            return -1  # at a corner of its own outline, the pixel is covered by the surface itself
        if contact.z < depths[0]:
            return 0
        if contact.z < depths[1]:
            return 1
        return -1

    @wp.func
    def bordered_layer(
        b: int,
        y: int,
        x: int,
        contact: Contact,
        owner: int,
        others: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),
        depths: wp.array3d(dtype=vec3),
    ):
        """Which layer of the pixel ends at this contour, if the contour can be seen just beyond the surface; or -1."""
        layer = int(-1)
        if owner == others[0]:
            layer = 0
        if owner == others[1]:
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
                beyond = seen_depths(b, v, u, covered, depths)
                if beyond[layer] < contact.z:
                    return -1
        return layer

    @wp.func
    def nearness(distance: scalar, radius: scalar):
        """Weight of a contour in the fringe's depth, and its derivative; twice differentiable, zero from the radius."""
        x = distance / radius
        u = one - x
        w = one / (x * x + scalar(0.01))
        return u * u * u * w, -(scalar(3.0) * u * u * w + scalar(2.0) * x * u * u * u * w * w) / radius

    @wp.func
    def keep_nearest(
        r: int,
        slot: int,
        e: int,
        distance: scalar,
        radius: scalar,
        is_new: wp.bool,
        distances: wp.array(dtype=vec4),
        nearest: wp.array(dtype=wp.vec4i),
    ):
        """Note contour e in a slot of record r if none is nearer."""
        d = vec4(radius, radius, radius, radius)
        n = wp.vec4i(-1, -1, -1, -1)
        if not is_new:
            d = distances[r]
            n = nearest[r]
        if distance < d[slot] * nearer or n[slot] < 0:
            d[slot] = distance
            n[slot] = e
            distances[r] = d
            nearest[r] = n

    @wp.func
    def first_place(b: int, tile: wp.vec4i, height: int, width: int):
        """Where the records of a block of pixels begin: blocks have as many places as pixels, row by row of blocks."""
        return (b * height + tile[1]) * width + tile[0] * (tile[3] - tile[1])

    @wp.kernel(module=module, enable_backward=False)
    def _gather_contours(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E: a, b, and the vertices opposite
        edge_info: wp.array(dtype=wp.vec2i),  # E: component, open
        face_info: wp.array(dtype=wp.vec2i),  # F: component, open
        # In:
        points: wp.array2d(dtype=vec3),  # B V, homogeneous
        limits: vec3,  # near, far, radius
        shape: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        depths: wp.array3d(dtype=vec3),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        # Out:
        records: wp.array3d(dtype=wp.int32),  # B H W, zeroed: 1 + the place of the pixel's record, 0 for none
        distances: wp.array(dtype=vec4),  # N: inside layers 0, 1, outside before them; the radius if none
        nearest: wp.array(dtype=wp.vec4i),  # N: the edges of those distances, -1 if none
        sums: wp.array(dtype=vec4),  # N: fringe weight and weighted log depth, before layers 0, 1
    ):
        b, tile = find_tile(first + wp.tid(), shape, covered.shape[1], covered.shape[2])
        centre = centre_of(covered.shape[1], covered.shape[2])
        radius = limits[2]
        place = first_place(b, tile, covered.shape[1], covered.shape[2])
        for e in range(edges.shape[0]):
            contour = find_contour(b, edges[e], edge_info[e][1], points, limits, tile, centre)
            if contour.side != zero:
                box = contour_box(contour, radius, tile)
                owner = edge_info[e][0]
                for y in range(box[1], box[3] + 1):
                    begin, end = row_span(contour, y, box[0], box[2], radius)
                    for x in range(begin, end + 1):
                        contact = touch(contour, x, y, radius)
                        if contact.distance < radius and contact.z < limits[1]:
                            others = owners(b, y, x, covered, hits, face_info)
                            slot = int(-1)
                            fringe = vec4(zero, zero, zero, zero)
                            if contact.inside:
                                slot = bordered_layer(b, y, x, contact, owner, others, covered, depths)
                            else:
                                before = seen_depths(b, y, x, covered, depths)
                                slot = fringe_slot(contact, owner, before, others)
                                if slot >= 0:
                                    weight, _ = nearness(contact.distance, radius)
                                    fringe[2 * slot] = weight
                                    fringe[2 * slot + 1] = weight * wp.log(contact.z)
                                    slot += 2
                            if slot >= 0:
                                r = records[b, y, x] - 1
                                is_new = r < 0
                                if is_new:
                                    r = place
                                    place += 1
                                    records[b, y, x] = place
                                else:
                                    fringe += sums[r]
                                sums[r] = fringe
                                keep_nearest(r, slot, e, contact.distance, radius, is_new, distances, nearest)

    return SimpleNamespace(
        Contour=Contour,
        Contact=Contact,
        find_contour=find_contour,
        contour_box=contour_box,
        row_span=row_span,
        touch=touch,
        seen_depths=seen_depths,
        owners=owners,
        fringe_slot=fringe_slot,
        nearness=nearness,
        gather=_gather_contours,
    )
