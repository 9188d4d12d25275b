"""Kernels for the `softras` silhouette rule: every face covers every pixel by a sigmoid of its squared distance.

With d the squared distance in pixels from a pixel to a triangle, negative inside, the face covers the pixel with the
probability p = sigmoid(-d / sigma); alpha is one minus the product of all 1 - p, and depth the mean with weights
p exp(z / gamma), z being the normalized inverse depth, against a background of its own weight.

Nothing is sorted and nothing is kept per pixel and face: backward, every face looks at its pixels again.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import layers

# Where less than this is left, a pixel is covered: more faces change no digit of alpha.
COVERED = {wp.float32: 1.0e-9, wp.float64: 1.0e-14}


@functools.cache
def make(scalar):
    """Kernels `gather_faces` and `scatter_faces` for one scalar type."""
    shared = layers.make(scalar)
    vec2, vec3 = shared.vec2, shared.vec3
    project, unproject, pixel_ray = shared.project, shared.unproject, shared.pixel_ray
    pixel_span, find_tile, centre_of = shared.pixel_span, shared.find_tile, shared.centre_of
    is_aside, side_of, cut = shared.is_aside, shared.side_of, shared.cut
    module = wp.get_module(f"gradpath.render.softras_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))
    covered = wp.constant(scalar(COVERED[scalar]))

    @wp.struct
    class Triangle:
        """A face in homogeneous coordinates and in pixels."""

        turn: scalar  # sign of its area in the image; 0: not drawn
        p0: vec3
        p1: vec3
        p2: vec3
        a: vec2
        b: vec2
        c: vec2
        ab: vec2
        bc: vec2
        ca: vec2
        inverse: vec3  # squared lengths of the edges, inverted; 0 for an edge without length
        begin: wp.vec2i  # first column and row of the pixels that may be within reach
        end: wp.vec2i  # last column and row
        side_0: vec3  # what is within reach of each edge's line, as `side_of` has it, in pixels
        side_1: vec3
        side_2: vec3

    @wp.struct
    class Touch:
        """The point of a triangle's outline that is closest to a pixel."""

        square: scalar  # squared distance [pixels^2], negative inside
        share: vec3  # the point is the mean of the corners with these weights
        away: vec2  # from the point to the pixel

    @wp.struct
    class Pull:
        """Gradient of a triangle."""

        a: vec2  # of the places of its corners in the image
        b: vec2
        c: vec2
        p0: vec3  # of its corners
        p1: vec3
        p2: vec3

    @wp.func
    def turn_of(u: vec2, v: vec2):
        return u[0] * v[1] - u[1] * v[0]

    @wp.func
    def invert(along: vec2):
        length2 = wp.dot(along, along)
        if length2 > zero:
            return one / length2
        return zero

    @wp.func
    def side_within(start: vec2, along: vec2, turn: scalar, reach: scalar, farthest: scalar):
        """The inner side of the line in `reach` outside of an edge."""
        inwards = vec2(-along[1], along[0]) * turn
        line = vec3(inwards[0], inwards[1], reach * wp.length(along) - wp.dot(inwards, start))
        return side_of(line, farthest)

    @wp.func
    def bounded(triangle: Triangle, reach: scalar, tile: wp.vec4i):
        """The triangle, with the pixels of a tile (left, top, right, bottom) that may be within reach."""
        a = triangle.a
        b = triangle.b
        c = triangle.c
        x0, x1 = pixel_span(
            wp.min(a[0], wp.min(b[0], c[0])), wp.max(a[0], wp.max(b[0], c[0])), reach, tile[0], tile[2]
        )
        y0, y1 = pixel_span(
            wp.min(a[1], wp.min(b[1], c[1])), wp.max(a[1], wp.max(b[1], c[1])), reach, tile[1], tile[3]
        )
        triangle.begin = wp.vec2i(x0, y0)
        triangle.end = wp.vec2i(x1, y1)
        triangle.side_0 = side_within(a, triangle.ab, triangle.turn, reach, scalar(tile[3]))
        triangle.side_1 = side_within(b, triangle.bc, triangle.turn, reach, scalar(tile[3]))
        triangle.side_2 = side_within(c, triangle.ca, triangle.turn, reach, scalar(tile[3]))
        return triangle

    @wp.func
    def find_triangle(
        b: int, face: wp.vec3i, points: wp.array2d(dtype=vec3), limits: vec3, tile: wp.vec4i, centre: vec2
    ):
        triangle = Triangle()
        triangle.turn = zero
        triangle.p0 = points[b, face[0]]
        triangle.p1 = points[b, face[1]]
        triangle.p2 = points[b, face[2]]
        if wp.min(triangle.p0[2], wp.min(triangle.p1[2], triangle.p2[2])) <= limits[0]:
            return triangle
        top = scalar(tile[1]) - limits[2] - centre[1]
        bottom = scalar(tile[3]) + limits[2] - centre[1]
        if is_aside(triangle.p0, triangle.p1, triangle.p2, top, bottom):
            return triangle
        triangle.a = project(triangle.p0, centre)
        triangle.b = project(triangle.p1, centre)
        triangle.c = project(triangle.p2, centre)
        triangle.ab = triangle.b - triangle.a
        triangle.bc = triangle.c - triangle.b
        triangle.ca = triangle.a - triangle.c
        triangle.inverse = vec3(invert(triangle.ab), invert(triangle.bc), invert(triangle.ca))
        area = turn_of(triangle.ca, triangle.ab)
        volume = wp.dot(triangle.p0, wp.cross(triangle.p1, triangle.p2))
        if area == zero or volume == zero:
            return triangle
        triangle.turn = wp.sign(area)
        return bounded(triangle, limits[2], tile)

    @wp.func
    def triangle_row(triangle: Triangle, y: int):
        """First and last pixel of a row that may be within reach."""
        v = scalar(y) + half
        span = vec2(scalar(triangle.begin[0]) + half, scalar(triangle.end[0]) + half)
        span = cut(triangle.side_0, v, cut(triangle.side_1, v, cut(triangle.side_2, v, span)))
        low = wp.ceil(span[0] - half)
        high = wp.floor(span[1] - half)
        if low <= high:
            return int(low), int(high)
        return 0, -1

    @wp.func
    def touch(triangle: Triangle, pixel: vec2):
        """The closest point, without a branch."""
        out = Touch()
        w0 = pixel - triangle.a
        w1 = pixel - triangle.b
        w2 = pixel - triangle.c
        t0 = wp.clamp(wp.dot(w0, triangle.ab) * triangle.inverse[0], zero, one)
        t1 = wp.clamp(wp.dot(w1, triangle.bc) * triangle.inverse[1], zero, one)
        t2 = wp.clamp(wp.dot(w2, triangle.ca) * triangle.inverse[2], zero, one)
        away0 = w0 - triangle.ab * t0
        away1 = w1 - triangle.bc * t1
        away2 = w2 - triangle.ca * t2
        d0 = wp.dot(away0, away0)
        d1 = wp.dot(away1, away1)
        d2 = wp.dot(away2, away2)
        d01 = wp.min(d0, d1)
        square = wp.min(d01, d2)
        s = triangle.turn
        c0 = turn_of(triangle.ab, w0) * s
        c1 = turn_of(triangle.bc, w1) * s
        c2 = turn_of(triangle.ca, w2) * s
        out.square = wp.where(wp.min(c0, wp.min(c1, c2)) > zero, -square, square)
        first = wp.where(d1 < d0, vec3(zero, one - t1, t1), vec3(one - t0, t0, zero))
        out.share = wp.where(d2 < d01, vec3(t2, zero, one - t2), first)
        out.away = wp.where(d2 < d01, away2, wp.where(d1 < d0, away1, away0))
        return out

    @wp.func
    def probability(square: scalar, sigma: scalar):
        """Probability that a face covers the pixel, and that it does not; `square` is at most some 30 sigma."""
        e = wp.exp(square / sigma)
        p = one / (one + e)
        return p, e * p

    @wp.func
    def barycentrics(triangle: Triangle, ray: vec3):
        """Perspective-correct coordinates of the ray in the triangle's plane, and the sum they were divided by."""
        beta = vec3(
            wp.dot(wp.cross(triangle.p1, triangle.p2), ray),
            wp.dot(wp.cross(triangle.p2, triangle.p0), ray),
            wp.dot(wp.cross(triangle.p0, triangle.p1), ray),
        )
        total = beta[0] + beta[1] + beta[2]
        if total == zero:
            return vec3(zero, zero, zero), one
        return beta / total, total

    @wp.func
    def clip(coordinates: vec3):
        """Coordinates of a point of the triangle: those below 0 or above 1 are cut off, the rest is scaled to 1."""
        kept = vec3(
            wp.clamp(coordinates[0], zero, one),
            wp.clamp(coordinates[1], zero, one),
            wp.clamp(coordinates[2], zero, one),
        )
        total = wp.max(kept[0] + kept[1] + kept[2], scalar(1.0e-5))
        return kept / total, total

    @wp.func
    def add_depth(triangle: Triangle, ray: vec3, p: scalar, mix: vec3, limits: vec3, gamma: scalar):
        """The mix of depths with one more face, of probability p; its first entry grows where the face is nearest."""
        inner, _total = barycentrics(triangle, ray)
        share, _kept = clip(inner)
        z = wp.dot(share, vec3(triangle.p0[2], triangle.p1[2], triangle.p2[2]))
        inverse = (limits[1] - z) / (limits[1] - limits[0])
        sums = mix
        if inverse > sums[0]:
            shrink = wp.exp((sums[0] - inverse) / gamma)
            sums = vec3(inverse, sums[1] * shrink, sums[2] * shrink)
        w = p * wp.exp((inverse - sums[0]) / gamma)
        return vec3(sums[0], sums[1] + w, sums[2] + w * z)

    @wp.kernel(module=module, enable_backward=False)
    def _gather_faces(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        # In:
        points: wp.array2d(dtype=vec3),  # B V, homogeneous
        limits: vec3,  # near, far, reach [pixels]
        shape: wp.vec2i,
        rule: vec2,  # sigma [pixels^2], gamma; gamma 0: no depth
        # Out:
        clear: wp.array3d(dtype=scalar),  # B H W, ones: probability that no face covers the pixel
        mix: wp.array3d(
            dtype=vec3
        ),  # B H W, or empty: largest inverse depth, sum of weights, weighted sum of depths
        nearest: wp.array3d(dtype=wp.int32),  # B H W, or empty: the face of that inverse depth, -1 for none
    ):
        b, tile = find_tile(first + wp.tid(), shape, clear.shape[1], clear.shape[2])
        centre = centre_of(clear.shape[1], clear.shape[2])
        with_depth = rule[1] > zero
        if with_depth:
            for y in range(tile[1], tile[3]):
                for x in range(tile[0], tile[2]):
                    mix[b, y, x] = vec3(scalar(1.0e-10), zero, zero)
                    nearest[b, y, x] = -1
        for f in range(faces.shape[0]):
            triangle = find_triangle(b, faces[f], points, limits, tile, centre)
            if triangle.turn != zero:
                for y in range(triangle.begin[1], triangle.end[1] + 1):
                    begin, end = triangle_row(triangle, y)
                    for x in range(begin, end + 1):
                        before = clear[b, y, x]
                        if with_depth or before > covered:
                            at = touch(triangle, vec2(scalar(x) + half, scalar(y) + half))
                            if at.square < limits[2] * limits[2]:
                                p, q = probability(at.square, rule[0])
                                clear[b, y, x] = before * q
                                if with_depth:
                                    old = mix[b, y, x]
                                    new = add_depth(
                                        triangle, pixel_ray(x, y, centre), p, old, limits, rule[1]
                                    )
                                    if new[0] > old[0]:
                                        nearest[b, y, x] = f
                                    mix[b, y, x] = new

    @wp.func
    def turn_back(triangle: Triangle, ray: vec3, g_share: vec3):
        """Gradient of the corners from that of the clipped coordinates of a ray."""
        inner, _total = barycentrics(triangle, ray)
        pull = Pull()
        g = vec3(zero, zero, zero)
        for k in range(3):
            if inner[k] > zero and inner[k] < one:
                g[k] = g_share[k]
        # The coordinates are inverse([p0 p1 p2]) ray, scaled to the sum 1.
        m0 = wp.cross(triangle.p1, triangle.p2)
        m1 = wp.cross(triangle.p2, triangle.p0)
        m2 = wp.cross(triangle.p0, triangle.p1)
        mean = wp.dot(g, inner)
        turned = (m0 * (g[0] - mean) + m1 * (g[1] - mean) + m2 * (g[2] - mean)) / -wp.dot(triangle.p0, m0)
        pull.p0 = turned * inner[0]
        pull.p1 = turned * inner[1]
        pull.p2 = turned * inner[2]
        return pull

    @wp.func
    def pull_depth(
        triangle: Triangle,
        ray: vec3,
        p: scalar,
        largest: scalar,
        is_nearest: wp.bool,
        seed: vec3,
        limits: vec3,
        gamma: scalar,
    ):
        """Gradient of the corners, and that of p, by the share of a face in the depth of a pixel."""
        inner, _total = barycentrics(triangle, ray)
        share, kept = clip(inner)
        heights = vec3(triangle.p0[2], triangle.p1[2], triangle.p2[2])
        z = wp.dot(share, heights)
        inverse = (limits[1] - z) / (limits[1] - limits[0])
        factor = wp.exp((inverse - largest) / gamma)
        g_w = seed[0] * (z - seed[1])
        g_inverse = g_w * p * factor / gamma
        if is_nearest:
            g_inverse += seed[2]
        g_z = seed[0] * p * factor - g_inverse / (limits[1] - limits[0])
        pull = turn_back(triangle, ray, (heights - vec3(z, z, z)) * (g_z / kept))
        pull.p0 += vec3(zero, zero, share[0] * g_z)
        pull.p1 += vec3(zero, zero, share[1] * g_z)
        pull.p2 += vec3(zero, zero, share[2] * g_z)
        return pull, g_w * factor

    @wp.kernel(module=module, enable_backward=False)
    def _scatter_faces(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        limits: vec3,
        rule: vec2,
        mix: wp.array3d(dtype=vec3),  # B H W
        nearest: wp.array3d(dtype=wp.int32),  # B H W
        g_clear: wp.array3d(dtype=scalar),  # B H W: gradient of log clear
        seeds: wp.array3d(dtype=vec3),  # B H W, or empty: see `_depth_seeds`
        # Out:
        corners: wp.array3d(dtype=vec3),  # B F 3: gradient of the corners of each face
    ):
        item = first + wp.tid()
        b = item // faces.shape[0]
        f = item - b * faces.shape[0]
        centre = centre_of(g_clear.shape[1], g_clear.shape[2])
        tile = wp.vec4i(0, 0, g_clear.shape[2], g_clear.shape[1])
        triangle = find_triangle(b, faces[f], points, limits, tile, centre)
        if triangle.turn == zero:
            for k in range(3):
                corners[b, f, k] = vec3(zero, zero, zero)
            return
        with_depth = rule[1] > zero
        total = Pull()
        for y in range(triangle.begin[1], triangle.end[1] + 1):
            begin, end = triangle_row(triangle, y)
            for x in range(begin, end + 1):
                seed = g_clear[b, y, x]
                if with_depth or seed != zero:
                    at = touch(triangle, vec2(scalar(x) + half, scalar(y) + half))
                    if at.square < limits[2] * limits[2]:
                        p, q = probability(at.square, rule[0])
                        g_square = seed * p
                        if with_depth:
                            ray = pixel_ray(x, y, centre)
                            is_nearest = nearest[b, y, x] == f
                            pull, g_p = pull_depth(
                                triangle, ray, p, mix[b, y, x][0], is_nearest, seeds[b, y, x], limits, rule[1]
                            )
                            total.p0 += pull.p0
                            total.p1 += pull.p1
                            total.p2 += pull.p2
                            g_square -= g_p * p * q
                        push = at.away * (
                            wp.where(at.square < zero, scalar(2.0), scalar(-2.0)) * g_square / rule[0]
                        )
                        total.a += push * at.share[0]
                        total.b += push * at.share[1]
                        total.c += push * at.share[2]
        corners[b, f, 0] = total.p0 + unproject(triangle.p0, total.a, zero)
        corners[b, f, 1] = total.p1 + unproject(triangle.p1, total.b, zero)
        corners[b, f, 2] = total.p2 + unproject(triangle.p2, total.c, zero)

    return SimpleNamespace(vec2=vec2, gather=_gather_faces, scatter=_scatter_faces)
