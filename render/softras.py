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


@functools.cache
def make(scalar):
    """Kernels `gather_faces` and `scatter_faces` for one scalar type."""
    shared = layers.make(scalar)
    vec2, vec3, vec4 = shared.vec2, shared.vec3, shared.vec4
    project, unproject, pixel_ray = shared.project, shared.unproject, shared.pixel_ray
    pixel_span, find_tile, centre_of = shared.pixel_span, shared.find_tile, shared.centre_of
    module = wp.get_module(f"gradpath.render.softras_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))
    # Where less than this is left, the pixel is covered: more faces change no digit of alpha.
    covered = wp.constant(scalar(1.0e-14))

    @wp.struct
    class Triangle:
        """A face in the camera frame and in pixels."""

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

    @wp.struct
    class Touch:
        """The point of a triangle's outline that is closest to a pixel."""

        square: scalar  # squared distance [pixels^2], negative inside
        edge: int  # 0: a b, 1: b c, 2: c a
        t: scalar  # where on that edge
        away: vec2  # from the point to the pixel

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
    def find_triangle(b: int, face: wp.vec3i, points: wp.array2d(dtype=vec3), centre: vec2, near: scalar):
        triangle = Triangle()
        triangle.turn = zero
        triangle.p0 = points[b, face[0]]
        triangle.p1 = points[b, face[1]]
        triangle.p2 = points[b, face[2]]
        if wp.min(triangle.p0[2], wp.min(triangle.p1[2], triangle.p2[2])) <= near:
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
        if area != zero and volume != zero:
            triangle.turn = wp.sign(area)
        return triangle

    @wp.func
    def bounds(triangle: Triangle, reach: scalar, tile: wp.vec4i):
        """First and last column and row of the pixels of a tile that are within `reach` of the bounding box."""
        a = triangle.a
        b = triangle.b
        c = triangle.c
        x0, x1 = pixel_span(
            wp.min(a[0], wp.min(b[0], c[0])), wp.max(a[0], wp.max(b[0], c[0])), reach, tile[0], tile[2]
        )
        y0, y1 = pixel_span(
            wp.min(a[1], wp.min(b[1], c[1])), wp.max(a[1], wp.max(b[1], c[1])), reach, tile[1], tile[3]
        )
        return wp.vec4i(x0, y0, x1, y1)

    @wp.func
    def touch(triangle: Triangle, pixel: vec2):
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
        out.edge = 0
        out.t = t0
        out.away = away0
        out.square = d0
        if d1 < out.square:
            out.edge = 1
            out.t = t1
            out.away = away1
            out.square = d1
        if d2 < out.square:
            out.edge = 2
            out.t = t2
            out.away = away2
            out.square = d2
        s = triangle.turn
        inside = (
            turn_of(triangle.ab, w0) * s > zero
            and turn_of(triangle.bc, w1) * s > zero
            and turn_of(triangle.ca, w2) * s > zero
        )
        if inside:
            out.square = -out.square
        return out

    @wp.func
    def square_to(triangle: Triangle, pixel: vec2):
        """The squared distance of `touch` alone: the least of those to the corners and to the lines between them."""
        w0 = pixel - triangle.a
        w1 = pixel - triangle.b
        w2 = pixel - triangle.c
        square = wp.min(wp.dot(w0, w0), wp.min(wp.dot(w1, w1), wp.dot(w2, w2)))
        c0 = turn_of(triangle.ab, w0)
        c1 = turn_of(triangle.bc, w1)
        c2 = turn_of(triangle.ca, w2)
        # Between the corners, where the way along the edge is forward from one and backward from the other.
        if wp.dot(w0, triangle.ab) > zero and wp.dot(w1, triangle.ab) < zero:
            square = wp.min(square, c0 * c0 * triangle.inverse[0])
        if wp.dot(w1, triangle.bc) > zero and wp.dot(w2, triangle.bc) < zero:
            square = wp.min(square, c1 * c1 * triangle.inverse[1])
        if wp.dot(w2, triangle.ca) > zero and wp.dot(w0, triangle.ca) < zero:
            square = wp.min(square, c2 * c2 * triangle.inverse[2])
        s = triangle.turn
        if c0 * s > zero and c1 * s > zero and c2 * s > zero:
            return -square
        return square

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
        clear: wp.array3d(dtype=scalar),  # B H W: probability that no face covers the pixel
        mix: wp.array3d(dtype=vec3),  # B H W: largest inverse depth, sum of weights, weighted sum of depths
        nearest: wp.array3d(dtype=wp.int32),  # B H W: the face of that inverse depth, -1 for none
    ):
        b, tile = find_tile(first + wp.tid(), shape, clear.shape[1], clear.shape[2])
        centre = centre_of(clear.shape[1], clear.shape[2])
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                clear[b, y, x] = one
                mix[b, y, x] = vec3(scalar(1.0e-10), zero, zero)
                nearest[b, y, x] = -1
        reach = limits[2]
        for f in range(faces.shape[0]):
            triangle = find_triangle(b, faces[f], points, centre, limits[0])
            if triangle.turn != zero:
                box = bounds(triangle, reach, tile)
                for y in range(box[1], box[3] + 1):
                    for x in range(box[0], box[2] + 1):
                        square = reach * reach
                        if rule[1] > zero or clear[b, y, x] > covered:
                            square = square_to(triangle, vec2(scalar(x) + half, scalar(y) + half))
                        if square < reach * reach:
                            p, q = probability(square, rule[0])
                            clear[b, y, x] = clear[b, y, x] * q
                            if rule[1] > zero:
                                inner, _total = barycentrics(triangle, pixel_ray(x, y, centre))
                                share, _kept = clip(inner)
                                z = wp.dot(share, vec3(triangle.p0[2], triangle.p1[2], triangle.p2[2]))
                                inverse = (limits[1] - z) / (limits[1] - limits[0])
                                sums = mix[b, y, x]
                                if inverse > sums[0]:
                                    shrink = wp.exp((sums[0] - inverse) / rule[1])
                                    sums = vec3(inverse, sums[1] * shrink, sums[2] * shrink)
                                    nearest[b, y, x] = f
                                w = p * wp.exp((inverse - sums[0]) / rule[1])
                                mix[b, y, x] = vec3(sums[0], sums[1] + w, sums[2] + w * z)

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
        seeds: wp.array3d(
            dtype=vec4
        ),  # B H W: gradient of log clear, of depth per weight; depth; of largest inverse
        # Out:
        corners: wp.array3d(dtype=vec3),  # B F 3: gradient of the corners of each face
    ):
        item = first + wp.tid()
        b = item // faces.shape[0]
        f = item - b * faces.shape[0]
        centre = centre_of(mix.shape[1], mix.shape[2])
        face = faces[f]
        triangle = find_triangle(b, face, points, centre, limits[0])
        if triangle.turn == zero:
            for k in range(3):
                corners[b, f, k] = vec3(zero, zero, zero)
            return
        reach = limits[2]
        box = bounds(triangle, reach, wp.vec4i(0, 0, mix.shape[2], mix.shape[1]))
        heights = vec3(triangle.p0[2], triangle.p1[2], triangle.p2[2])
        m0 = wp.cross(triangle.p1, triangle.p2)
        m1 = wp.cross(triangle.p2, triangle.p0)
        m2 = wp.cross(triangle.p0, triangle.p1)
        volume = wp.dot(triangle.p0, m0)
        g_a = vec2(zero, zero)
        g_b = vec2(zero, zero)
        g_c = vec2(zero, zero)
        g_heights = vec3(zero, zero, zero)
        g_p0 = vec3(zero, zero, zero)
        g_p1 = vec3(zero, zero, zero)
        g_p2 = vec3(zero, zero, zero)
        for y in range(box[1], box[3] + 1):
            for x in range(box[0], box[2] + 1):
                seed = seeds[b, y, x]
                at = Touch()
                at.square = reach * reach
                if rule[1] > zero or wp.abs(seed[0]) > zero:
                    at = touch(triangle, vec2(scalar(x) + half, scalar(y) + half))
                if at.square < reach * reach:
                    p, q = probability(at.square, rule[0])
                    g_square = seed[0] * p / rule[0]
                    if rule[1] > zero:
                        ray = pixel_ray(x, y, centre)
                        inner, total = barycentrics(triangle, ray)
                        share, kept = clip(inner)
                        z = wp.dot(share, heights)
                        inverse = (limits[1] - z) / (limits[1] - limits[0])
                        w = p * wp.exp((inverse - mix[b, y, x][0]) / rule[1])
                        g_w = seed[1] * (z - seed[2])
                        g_square -= g_w * w * q / rule[0]
                        g_inverse = g_w * w / rule[1]
                        if nearest[b, y, x] == f:
                            g_inverse += seed[3]
                        g_z = seed[1] * w - g_inverse / (limits[1] - limits[0])
                        g_heights += share * g_z
                        # Back through the clipping, and through coordinates = inverse([p0 p1 p2]) ray, scaled to 1.
                        g_kept = (heights - vec3(z, z, z)) * (g_z / kept)
                        g_inner = vec3(zero, zero, zero)
                        for k in range(3):
                            if inner[k] > zero and inner[k] < one:
                                g_inner[k] = g_kept[k]
                        mean = wp.dot(g_inner, inner)
                        turned = (
                            m0 * (g_inner[0] - mean) + m1 * (g_inner[1] - mean) + m2 * (g_inner[2] - mean)
                        ) / total
                        g_p0 -= turned * (inner[0] * total / volume)
                        g_p1 -= turned * (inner[1] * total / volume)
                        g_p2 -= turned * (inner[2] * total / volume)
                    pull = at.away * (scalar(-2.0) * g_square)
                    if at.square < zero:
                        pull = -pull
                    start = pull * (one - at.t)
                    end = pull * at.t
                    if at.edge == 0:
                        g_a += start
                        g_b += end
                    elif at.edge == 1:
                        g_b += start
                        g_c += end
                    else:
                        g_c += start
                        g_a += end
        corners[b, f, 0] = g_p0 + unproject(triangle.p0, g_a, zero) + vec3(zero, zero, g_heights[0])
        corners[b, f, 1] = g_p1 + unproject(triangle.p1, g_b, zero) + vec3(zero, zero, g_heights[1])
        corners[b, f, 2] = g_p2 + unproject(triangle.p2, g_c, zero) + vec3(zero, zero, g_heights[2])

    return SimpleNamespace(vec2=vec2, gather=_gather_faces, scatter=_scatter_faces)
