"""Kernels of `gradpath.distances`, as factories over the float type."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import enum

import warp as wp

from gradpath.warp_geometry import make_safe_length


class Shape(enum.IntEnum):
    """Kinds of shape, each in its own frame; `size` (3 numbers) means what the comment says, [m]."""

    SPHERE = 0  # radius, -, -
    BOX = 1  # half extents x, y, z
    CYLINDER = 2  # radius, half length along z, -
    CAPSULE = 3  # radius, half length along z of the segment, -
    PLANE = 4  # -, -, -: the half space z < 0 is solid


_SPHERE, _BOX, _CYLINDER, _CAPSULE, _PLANE = (wp.constant(int(shape)) for shape in Shape)
_FARTHEST = wp.constant(1.0e15)  # [m]; its square is still a float32


def _make_local_distance(scalar):
    """Return the Warp function (kind, point in the shape's frame, size) -> signed distance."""
    vec2, vec3 = wp.types.vector(2, scalar), wp.types.vector(3, scalar)
    safe_length = make_safe_length(scalar)

    @wp.func
    def rectangle(excess: vec2):
        """Distance to a rectangle from what the coordinates exceed its sides by."""
        most = wp.max(excess[0], excess[1])
        if most <= scalar(0.0):
            return most
        return safe_length(wp.max(excess[0], scalar(0.0)), wp.max(excess[1], scalar(0.0)))

    @wp.func
    def local_distance(kind: wp.int32, p: vec3, size: vec3):
        if kind == _SPHERE:
            return safe_length(safe_length(p[0], p[1]), p[2]) - size[0]
        if kind == _BOX:
            x = wp.abs(p[0]) - size[0]
            y = wp.abs(p[1]) - size[1]
            z = wp.abs(p[2]) - size[2]
            xy = rectangle(vec2(x, y))
            return rectangle(vec2(xy, z))
        if kind == _CYLINDER:
            return rectangle(vec2(safe_length(p[0], p[1]) - size[0], wp.abs(p[2]) - size[1]))
        if kind == _CAPSULE:
            beyond = wp.max(wp.abs(p[2]) - size[1], scalar(0.0))
            return safe_length(safe_length(p[0], p[1]), beyond) - size[0]
        if kind == _PLANE:
            return p[2]
        return scalar(wp.nan)

    return local_distance


def make_shape_distance(scalar):
    """Return the kernel of `shape_distance`; launched over (B, P, I)."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)
    local_distance = _make_local_distance(scalar)

    @wp.kernel(module="unique")
    def _measure_shape_distance(
        # In:
        points: wp.array2d(dtype=vec3),  # (B, P)
        kind: wp.array2d(dtype=wp.int32),  # (B, I)
        pose: wp.array2d(dtype=transform),  # (B, I)
        size: wp.array2d(dtype=vec3),  # (B, I)
        # Out:
        distance: wp.array3d(dtype=scalar),  # (B, P, I)
    ):
        world, point, item = wp.tid()
        local = wp.transform_point(wp.transform_inverse(pose[world, item]), points[world, point])
        distance[world, point, item] = local_distance(kind[world, item], local, size[world, item])

    return _measure_shape_distance


def make_closest_on_triangle(scalar):
    """Return the Warp function (point, three corners) -> closest point of the triangle."""
    vec3 = wp.types.vector(3, scalar)

    @wp.func
    def closest_on_segment(p: vec3, a: vec3, b: vec3):
        along = b - a
        t = wp.dot(p - a, along) / wp.max(wp.dot(along, along), scalar(1.0e-30))
        return a + along * wp.clamp(t, scalar(0.0), scalar(1.0))

    @wp.func
    def nearer(p: vec3, a: vec3, b: vec3):
        if wp.length_sq(p - a) <= wp.length_sq(p - b):
            return a
        return b

    @wp.func
    def closest_on_triangle(p: vec3, a: vec3, b: vec3, c: vec3):
        normal = wp.cross(b - a, c - a)
        inside_ab = wp.dot(wp.cross(b - a, p - a), normal) >= scalar(0.0)
        inside_bc = wp.dot(wp.cross(c - b, p - b), normal) >= scalar(0.0)
        inside_ca = wp.dot(wp.cross(a - c, p - c), normal) >= scalar(0.0)
        square = wp.length_sq(normal)
        if inside_ab and inside_bc and inside_ca and square > scalar(0.0):
            return p - normal * (wp.dot(p - a, normal) / square)
        on_ab, on_bc = closest_on_segment(p, a, b), closest_on_segment(p, b, c)
        return nearer(p, closest_on_segment(p, c, a), nearer(p, on_ab, on_bc))

    return closest_on_triangle


def make_mesh_query(scalar):
    """Return the kernel that finds the nearest surface point of a mesh instance; launched over (B, P, I)."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)
    closest_on_triangle = make_closest_on_triangle(scalar)

    @wp.kernel(module="unique", enable_backward=False)
    def _find_closest_point(
        # Model:
        mesh: wp.uint64,
        vertices: wp.array(dtype=vec3),  # (V,)
        faces: wp.array2d(dtype=wp.int32),  # (F, 3)
        # In:
        points: wp.array2d(dtype=vec3),  # (B, P)
        pose: wp.array2d(dtype=transform),  # (B, I)
        scale: wp.array2d(dtype=scalar),  # (B, I)
        # Out, in the frame of the mesh:
        closest: wp.array3d(dtype=vec3),  # (B, P, I)
        outward: wp.array3d(dtype=vec3),  # (B, P, I)
    ):
        world, point, item = wp.tid()
        inverse = wp.transform_inverse(pose[world, item])
        p = wp.transform_point(inverse, points[world, point]) / scale[world, item]
        # The tree is float32. Only which face is nearest comes from it; the point on the face is recomputed.
        query = wp.mesh_query_point_sign_normal(
            mesh, wp.vec3(float(p[0]), float(p[1]), float(p[2])), _FARTHEST
        )
        if not query.result:  # a point that is not finite is near nothing
            outward[world, point, item] = vec3(scalar(wp.nan))
            return
        a = vertices[faces[query.face, 0]]
        b = vertices[faces[query.face, 1]]
        c = vertices[faces[query.face, 2]]
        q = closest_on_triangle(p, a, b, c)
        offset = p - q
        if wp.length(offset) > scalar(1.0e-6) * (scalar(1.0) + wp.length(q)):
            outward[world, point, item] = wp.normalize(offset) * scalar(query.sign)
        else:  # on the surface the offset has no direction
            outward[world, point, item] = wp.normalize(wp.cross(b - a, c - a))
        closest[world, point, item] = q

    return _find_closest_point
