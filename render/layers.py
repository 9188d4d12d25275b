"""Kernels that find, for every pixel, the three nearest surfaces along its ray, and send gradients back to them.

Vertices come in homogeneous coordinates of the image, (u z, v z, z) with u and v in pixels from the centre of the
image, so that the ray of a pixel is (u, v, 1) and no kernel needs to know the camera. Rays and triangles meet by the
sign of scalar triple products (Olano and Greer 1997), so a triangle that crosses the plane of the camera needs no
clipping; only its bounding box does. In each row these signs bound the pixels of a triangle, so that no others are
looked at.

What a pixel does not see is not written: `covered` tells whether there is anything in `depths` and `hits`.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

EMPTY = 1.0e30  # depth of a layer that is not there


@functools.cache
def make(scalar):
    """Kernels `raster` and `unraster` for one scalar type, and the functions that other kernels share with them."""
    vec2 = wp.types.vector(2, scalar)
    vec3 = wp.types.vector(3, scalar)
    vec4 = wp.types.vector(4, scalar)
    module = wp.get_module(f"gradpath.render.layers_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))
    nothing = wp.constant(scalar(EMPTY))
    # Two faces that share an edge meet a ray through that edge at one depth: one surface, not two layers.
    same = wp.constant(scalar(1.0e-5))
    # How far the ends of a row are surely right [pixels], and as a share of what cancels in them.
    slack = wp.constant(scalar(0.01))
    rounding = wp.constant(scalar(1.0e-6))

    @wp.struct
    class Plane:
        """A face that looks at the camera, and the box of pixels that it may cover."""

        begin: wp.vec2i  # first column and row
        end: wp.vec2i  # last column and row; before the first: the face cannot be seen
        m0: vec3  # a ray passes inside of an edge where its product with these is not negative
        m1: vec3
        m2: vec3
        normal: vec3  # their sum
        volume: scalar  # the depth of a hit is volume / (normal . ray)
        side_0: vec3  # of m0, m1, m2, as `side_of` has it
        side_1: vec3
        side_2: vec3

    @wp.func
    def centre_of(height: int, width: int):
        return vec2(scalar(width) * half, scalar(height) * half)

    @wp.func
    def project(p: vec3, centre: vec2):
        """Where a point appears in the image [pixels]."""
        return vec2(p[0] / p[2] + centre[0], p[1] / p[2] + centre[1])

    @wp.func
    def unproject(p: vec3, g: vec2, g_inverse: scalar):
        """Gradient of a point from that of its place in the image and of its inverse depth."""
        i = one / p[2]
        return vec3(g[0] * i, g[1] * i, -(g[0] * p[0] + g[1] * p[1] + g_inverse) * i * i)

    @wp.func
    def pixel_ray(x: int, y: int, centre: vec2):
        return vec3(scalar(x) + half - centre[0], scalar(y) + half - centre[1], one)

    @wp.func
    def grow(box: vec4, a: vec3, b: vec3, near: scalar, centre: vec2):
        """Extend the box (x0, y0, x1, y1) by the part of the segment a b that lies beyond the near plane."""
        if a[2] < near and b[2] < near:
            return box
        p = a
        q = b
        if p[2] < near:
            p = a + (b - a) * ((near - a[2]) / (b[2] - a[2]))
        if q[2] < near:
            q = a + (b - a) * ((near - a[2]) / (b[2] - a[2]))
        u = project(p, centre)
        v = project(q, centre)
        return vec4(
            wp.min(box[0], wp.min(u[0], v[0])),
            wp.min(box[1], wp.min(u[1], v[1])),
            wp.max(box[2], wp.max(u[0], v[0])),
            wp.max(box[3], wp.max(u[1], v[1])),
        )

    @wp.func
    def bounding_box(p0: vec3, p1: vec3, p2: vec3, near: scalar, centre: vec2):
        """Box (x0, y0, x1, y1) of the part of a triangle that lies beyond the near plane."""
        if wp.min(p0[2], wp.min(p1[2], p2[2])) >= near:
            a = project(p0, centre)
            b = project(p1, centre)
            c = project(p2, centre)
            return vec4(
                wp.min(a[0], wp.min(b[0], c[0])),
                wp.min(a[1], wp.min(b[1], c[1])),
                wp.max(a[0], wp.max(b[0], c[0])),
                wp.max(a[1], wp.max(b[1], c[1])),
            )
        box = vec4(nothing, nothing, -nothing, -nothing)
        box = grow(box, p0, p1, near, centre)
        box = grow(box, p1, p2, near, centre)
        return grow(box, p2, p0, near, centre)

    @wp.func
    def pixel_span(low: scalar, high: scalar, margin: scalar, begin: int, end: int):
        """First and last of the pixels `begin` to `end` whose centre lies within `margin` of low to high."""
        first = wp.max(scalar(begin), wp.ceil(low - margin - half))
        last = wp.min(wp.floor(high + margin - half), scalar(end - 1))
        # Compared as floats: what lies far aside has no integer pixel.
        if first <= last:
            return int(first), int(last)
        return begin, begin - 1

    @wp.func
    def find_tile(item: int, tile: wp.vec2i, height: int, width: int):
        """World, and left, top, right and bottom of a thread's block of pixels, the last two being past the end."""
        columns = (width + tile[0] - 1) // tile[0]
        blocks = columns * ((height + tile[1] - 1) // tile[1])
        world = item // blocks
        block = item - world * blocks
        left = (block % columns) * tile[0]
        top = (block // columns) * tile[1]
        return world, wp.vec4i(left, top, wp.min(left + tile[0], width), wp.min(top + tile[1], height))

    @wp.func
    def is_aside(p: vec3, q: vec3, r: vec3, top: scalar, bottom: scalar):
        """Whether a triangle lies above or below all rays from v = top to v = bottom; at any depth."""
        above = wp.max(p[1] - top * p[2], wp.max(q[1] - top * q[2], r[1] - top * r[2])) < zero
        below = wp.min(p[1] - bottom * p[2], wp.min(q[1] - bottom * q[2], r[1] - bottom * r[2])) > zero
        return above or below

    @wp.func
    def find_plane(
        b: int,
        face: wp.vec3i,
        is_open: int,
        points: wp.array2d(dtype=vec3),
        limits: vec3,
        tile: wp.vec4i,
        centre: vec2,
    ):
        """The plane of a face, with its box in a tile (left, top, right, bottom)."""
        plane = Plane()
        plane.end = wp.vec2i(-1, -1)
        p0 = points[b, face[0]]
        p1 = points[b, face[1]]
        p2 = points[b, face[2]]
        deepest = wp.max(p0[2], wp.max(p1[2], p2[2]))
        nearest = wp.min(p0[2], wp.min(p1[2], p2[2]))
        if deepest <= limits[0] or nearest >= limits[1]:
            return plane
        if is_aside(p0, p1, p2, scalar(tile[1]) - centre[1], scalar(tile[3]) - centre[1]):
            return plane
        m0 = wp.cross(p1, p2)
        volume = wp.dot(p0, m0)
        if volume < zero or (is_open == 1 and volume > zero):
            box = bounding_box(p0, p1, p2, limits[0], centre)
            x0, x1 = pixel_span(box[0], box[2], zero, tile[0], tile[2])
            y0, y1 = pixel_span(box[1], box[3], zero, tile[1], tile[3])
            if x0 <= x1:
                s = wp.sign(volume)
                plane.begin = wp.vec2i(x0, y0)
                plane.end = wp.vec2i(x1, y1)
                plane.m0 = m0 * s
                plane.m1 = wp.cross(p2, p0) * s
                plane.m2 = wp.cross(p0, p1) * s
                plane.normal = plane.m0 + plane.m1 + plane.m2
                plane.volume = volume * s
                farthest = wp.max(wp.abs(scalar(y0) - centre[1]), wp.abs(scalar(y1 + 1) - centre[1]))
                plane.side_0 = side_of(plane.m0, farthest)
                plane.side_1 = side_of(plane.m1, farthest)
                plane.side_2 = side_of(plane.m2, farthest)
        return plane

    @wp.func
    def side_of(m: vec3, farthest: scalar):
        """Where a row leaves the inner side of m, the rays with m.(u, v, 1) >= 0, as (slope, offset, side).

        That is at u = slope v + offset, from there on (side 1) or up to there (-1), where |v| is at most `farthest`;
        the offset lets in what is not sure to be outside.
        """
        if m[0] == zero:
            return vec3(zero, zero, zero)
        inverse = one / m[0]
        side = wp.sign(inverse)
        unsure = slack + rounding * (wp.abs(m[1]) * farthest + wp.abs(m[2])) * wp.abs(inverse)
        return vec3(-m[1] * inverse, -m[2] * inverse - side * unsure, side)

    @wp.func
    def cut(side: vec3, v: scalar, span: vec2):
        """The part of a row from span[0] to span[1] that lies on the inner side."""
        end = side[0] * v + side[1]
        low = wp.where(side[2] > zero, wp.max(span[0], end), span[0])
        high = wp.where(side[2] < zero, wp.min(span[1], end), span[1])
        return vec2(low, high)

    @wp.func
    def plane_row(plane: Plane, y: int, centre: vec2):
        """First and last pixel of a row that a face may cover."""
        v = scalar(y) + half - centre[1]
        shift = half - centre[0]
        span = vec2(scalar(plane.begin[0]) + shift, scalar(plane.end[0]) + shift)
        span = cut(plane.side_0, v, cut(plane.side_1, v, cut(plane.side_2, v, span)))
        low = wp.ceil(span[0] - shift)
        high = wp.floor(span[1] - shift)
        if low <= high:
            return int(low), int(high)
        return 0, -1

    @wp.func
    def meet(plane: Plane, ray: vec3):
        """Inverse of the slope of a face along a ray that meets it, which times its volume is the depth; 0: none."""
        slope = wp.dot(plane.normal, ray)
        if (
            wp.dot(plane.m0, ray) >= zero
            and wp.dot(plane.m1, ray) >= zero
            and wp.dot(plane.m2, ray) >= zero
            and slope > zero
        ):
            return one / slope
        return zero

    @wp.func
    def insert(depths: vec3, faces: wp.vec3i, z: scalar, face: int):
        """Put a hit among the three nearest, in order; a second hit of one surface is no new layer."""
        if z < depths[0] * (one - same):
            return vec3(z, depths[0], depths[1]), wp.vec3i(face, faces[0], faces[1])
        if z <= depths[0] * (one + same):
            return depths, faces
        if z < depths[1] * (one - same):
            return vec3(depths[0], z, depths[1]), wp.vec3i(faces[0], face, faces[1])
        if z <= depths[1] * (one + same):
            return depths, faces
        if z < depths[2]:
            return vec3(depths[0], depths[1], z), wp.vec3i(faces[0], faces[1], face)
        return depths, faces

    @wp.kernel(module=module, enable_backward=False)
    def _raster_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        face_info: wp.array(dtype=wp.vec2i),  # F: component, open
        # In:
        points: wp.array2d(dtype=vec3),  # B V, homogeneous
        limits: vec3,  # near, far, contour radius in pixels
        shape: wp.vec2i,  # width and height of the block of pixels that one thread owns
        # Out:
        covered: wp.array3d(dtype=wp.uint8),  # B H W, zeroed: 1 where there is a layer
        depths: wp.array3d(dtype=vec3),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W: face indices, -1 for none
    ):
        b, tile = find_tile(first + wp.tid(), shape, covered.shape[1], covered.shape[2])
        centre = centre_of(covered.shape[1], covered.shape[2])
        for f in range(faces.shape[0]):
            plane = find_plane(b, faces[f], face_info[f][1], points, limits, tile, centre)
            for y in range(plane.begin[1], plane.end[1] + 1):
                begin, end = plane_row(plane, y, centre)
                for x in range(begin, end + 1):
                    z = plane.volume * meet(plane, pixel_ray(x, y, centre))
                    if z > limits[0] and z < limits[1]:
                        if covered[b, y, x] == wp.uint8(0):
                            covered[b, y, x] = wp.uint8(1)
                            depths[b, y, x] = vec3(z, nothing, nothing)
                            hits[b, y, x] = wp.vec3i(f, -1, -1)
                        else:
                            new_depths, new_faces = insert(depths[b, y, x], hits[b, y, x], z, f)
                            depths[b, y, x] = new_depths
                            hits[b, y, x] = new_faces

    @wp.func
    def layer_of(hit: wp.vec3i, face: int):
        """Which layer of a pixel a face is, or -1."""
        if hit[0] == face:
            return 0
        if hit[1] == face:
            return 1
        if hit[2] == face:
            return 2
        return -1

    @wp.kernel(module=module, enable_backward=False)
    def _unraster_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        face_info: wp.array(dtype=wp.vec2i),  # F
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        limits: vec3,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        records: wp.array3d(dtype=wp.int32),  # B H W: 1 + place in `g_layers`; 0: one layer is seen
        g_layers: wp.array(dtype=vec3),  # N: gradient of the depths of the three layers
        g_depth: wp.array3d(dtype=scalar),  # B H W: gradient of the depth of the image
        # Out:
        corners: wp.array3d(dtype=vec3),  # B F 3: gradient of the corners of each face
    ):
        item = first + wp.tid()
        b = item // faces.shape[0]
        f = item - b * faces.shape[0]
        height = covered.shape[1]
        width = covered.shape[2]
        centre = centre_of(height, width)
        plane = find_plane(
            b, faces[f], face_info[f][1], points, limits, wp.vec4i(0, 0, width, height), centre
        )
        # A corner moves the plane at a hit by its weight m.ray / normal.ray, so sums of rays are all that is needed.
        pull = vec3(zero, zero, zero)
        for y in range(plane.begin[1], plane.end[1] + 1):
            begin, end = plane_row(plane, y, centre)
            for x in range(begin, end + 1):
                if covered[b, y, x] != wp.uint8(0):
                    layer = layer_of(hits[b, y, x], f)
                    if layer >= 0:
                        g = zero
                        r = records[b, y, x] - 1
                        if r >= 0:
                            g = g_layers[r][layer]
                        elif layer == 0:
                            g = g_depth[b, y, x]
                        ray = pixel_ray(x, y, centre)
                        inverse = meet(plane, ray)
                        pull += ray * (g * inverse * inverse)
        corners[b, f, 0] = plane.normal * wp.dot(plane.m0, pull)
        corners[b, f, 1] = plane.normal * wp.dot(plane.m1, pull)
        corners[b, f, 2] = plane.normal * wp.dot(plane.m2, pull)

    return SimpleNamespace(
        vec2=vec2,
        vec3=vec3,
        vec4=vec4,
        nothing=nothing,
        Plane=Plane,
        centre_of=centre_of,
        project=project,
        unproject=unproject,
        pixel_ray=pixel_ray,
        pixel_span=pixel_span,
        find_tile=find_tile,
        is_aside=is_aside,
        side_of=side_of,
        cut=cut,
        find_plane=find_plane,
        plane_row=plane_row,
        meet=meet,
        layer_of=layer_of,
        raster=_raster_layers,
        unraster=_unraster_layers,
    )
