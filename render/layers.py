"""Kernels that find, for every pixel, the three nearest surfaces along its ray, and send gradients back to them.

Rays and triangles meet by the sign of scalar triple products with the camera centre (Olano and Greer 1997), so a
triangle that crosses the plane of the camera needs no clipping; only its bounding box does.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

EMPTY = 1.0e30  # depth of a layer that is not there


@functools.cache
def make(scalar):
    """Kernel `raster` for one scalar type, and the functions that other kernels share with it."""
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

    @wp.func
    def project(p: vec3, camera: vec4):
        return vec2(camera[0] * p[0] / p[2] + camera[2], camera[1] * p[1] / p[2] + camera[3])

    @wp.func
    def unproject(p: vec3, g: vec2, g_inverse: scalar, camera: vec4):
        """Gradient of a point's camera coordinates from that of its pixel coordinates and inverse depth."""
        i = one / p[2]
        gx = g[0] * camera[0] * i
        gy = g[1] * camera[1] * i
        return vec3(gx, gy, -(gx * p[0] + gy * p[1] + g_inverse * i) * i)

    @wp.func
    def pixel_ray(x: int, y: int, camera: vec4):
        return vec3(
            (scalar(x) + half - camera[2]) / camera[0], (scalar(y) + half - camera[3]) / camera[1], one
        )

    @wp.func
    def grow(box: vec4, a: vec3, b: vec3, camera: vec4, near: scalar):
        """Extend the box (x0, y0, x1, y1) by the part of the segment a b that lies beyond the near plane."""
        if a[2] < near and b[2] < near:
            return box
        p = a
        q = b
        if p[2] < near:
            p = a + (b - a) * ((near - a[2]) / (b[2] - a[2]))
        if q[2] < near:
            q = a + (b - a) * ((near - a[2]) / (b[2] - a[2]))
        u = project(p, camera)
        v = project(q, camera)
        return vec4(
            wp.min(box[0], wp.min(u[0], v[0])),
            wp.min(box[1], wp.min(u[1], v[1])),
            wp.max(box[2], wp.max(u[0], v[0])),
            wp.max(box[3], wp.max(u[1], v[1])),
        )

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
    def tile_bounds(block: int, tile: wp.vec2i, height: int, width: int):
        """Left, top, right and bottom of a thread's block of pixels, the last two being past the end."""
        columns = (width + tile[0] - 1) // tile[0]
        left = (block % columns) * tile[0]
        top = (block // columns) * tile[1]
        return left, top, wp.min(left + tile[0], width), wp.min(top + tile[1], height)

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
        points: wp.array2d(dtype=vec3),  # B V, camera frame
        cameras: wp.array(dtype=vec4),  # B: fx, fy, cx, cy
        limits: vec3,  # near, far, contour radius in pixels
        tile: wp.vec2i,  # width and height of the block of pixels that one thread owns
        # Out:
        depths: wp.array3d(dtype=vec3),  # B H W, filled with EMPTY
        hits: wp.array3d(dtype=wp.vec3i),  # B H W: face indices, filled with -1
    ):
        world, block = wp.tid()
        b = first + world
        left, top, right, bottom = tile_bounds(block, tile, depths.shape[1], depths.shape[2])
        camera = cameras[b]
        near = limits[0]
        far = limits[1]
        for f in range(faces.shape[0]):
            face = faces[f]
            p0 = points[b, face[0]]
            p1 = points[b, face[1]]
            p2 = points[b, face[2]]
            deepest = wp.max(p0[2], wp.max(p1[2], p2[2]))
            nearest = wp.min(p0[2], wp.min(p1[2], p2[2]))
            m0 = wp.cross(p1, p2)
            volume = wp.dot(p0, m0)
            if (
                deepest > near
                and nearest < far
                and (volume < zero or (face_info[f][1] == 1 and volume > zero))
            ):
                box = vec4(nothing, nothing, -nothing, -nothing)
                box = grow(box, p0, p1, camera, near)
                box = grow(box, p1, p2, camera, near)
                box = grow(box, p2, p0, camera, near)
                x0, x1 = pixel_span(box[0], box[2], zero, left, right)
                y0, y1 = pixel_span(box[1], box[3], zero, top, bottom)
                if x0 <= x1 and y0 <= y1:
                    s = wp.sign(volume)
                    m1 = wp.cross(p2, p0)
                    m2 = wp.cross(p0, p1)
                    normal = m0 + m1 + m2
                    for y in range(y0, y1 + 1):
                        for x in range(x0, x1 + 1):
                            ray = pixel_ray(x, y, camera)
                            slope = wp.dot(normal, ray) * s
                            if (
                                wp.dot(m0, ray) * s >= zero
                                and wp.dot(m1, ray) * s >= zero
                                and wp.dot(m2, ray) * s >= zero
                                and slope > zero
                            ):
                                z = volume * s / slope
                                if z > near and z < far:
                                    new_depths, new_faces = insert(depths[b, y, x], hits[b, y, x], z, f)
                                    depths[b, y, x] = new_depths
                                    hits[b, y, x] = new_faces

    @wp.func
    def spread_hit(
        b: int,
        face: wp.vec3i,
        ray: vec3,
        camera: vec4,
        g: scalar,
        points: wp.array2d(dtype=vec3),
        g_points: wp.array2d(dtype=vec3),
        g_cameras: wp.array(dtype=vec4),
    ):
        """Add the gradient g of one hit's depth to the corners of its face and to the intrinsics."""
        p0 = points[b, face[0]]
        p1 = points[b, face[1]]
        p2 = points[b, face[2]]
        m0 = wp.cross(p1, p2)
        m1 = wp.cross(p2, p0)
        m2 = wp.cross(p0, p1)
        normal = m0 + m1 + m2
        inverse = one / wp.dot(normal, ray)
        # The hit is sum_i b_i p_i; moving a corner moves the plane at the hit by its weight b_i.
        push = normal * (g * inverse * inverse)
        wp.atomic_add(g_points, b, face[0], push * wp.dot(m0, ray))
        wp.atomic_add(g_points, b, face[1], push * wp.dot(m1, ray))
        wp.atomic_add(g_points, b, face[2], push * wp.dot(m2, ray))
        z = wp.dot(p0, m0) * inverse
        g_ray = normal * (-g * z * inverse)
        gx = -g_ray[0] / camera[0]
        gy = -g_ray[1] / camera[1]
        wp.atomic_add(g_cameras, b, vec4(gx * ray[0], gy * ray[1], gx, gy))

    return SimpleNamespace(
        vec2=vec2,
        vec3=vec3,
        vec4=vec4,
        nothing=nothing,
        project=project,
        unproject=unproject,
        pixel_ray=pixel_ray,
        pixel_span=pixel_span,
        tile_bounds=tile_bounds,
        spread_hit=spread_hit,
        raster=_raster_layers,
    )
