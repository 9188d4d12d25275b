"""Kernel that places contacts: a probe of one shape against the surface of another."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
import math

import warp as wp

from gradpath.sim.contact_edges import EDGE_PROBE, make_box_edges
from gradpath.sim.contact_surfaces import (
    BOX,
    CAPSULE,
    CYLINDER,
    HEIGHT_FIELD,
    PLANE,
    SPHERE,
    make_box_surface,
    make_height_surface,
    make_mesh_surface,
    make_round_surfaces,
)

# Probes of a capsule along its segment, from one end to the other, and the one that slides to a capsule opposite.
CAPSULE_ENDS = 2
CAPSULE_PROBES = 5
CAPSULE_SLIDING = 5
# Probes of a cylinder: the lowest point of each rim, which rolls, and points fixed on each rim, to stand on.
CYLINDER_ROLLING = 2
CYLINDER_RIM = 6

_SLIDING = wp.constant(CAPSULE_SLIDING)
_ROLLING = wp.constant(CYLINDER_ROLLING)
_EDGE = wp.constant(EDGE_PROBE)


@functools.cache
def make_probes(scalar):
    """Return the Warp functions that say where the probes of primitives are, in the frames of their shapes."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)

    @wp.func
    def box_corner(index: int, size: vec3):
        sign = vec3(
            scalar(2 * (index & 1) - 1),
            scalar(2 * ((index >> 1) & 1) - 1),
            scalar(2 * ((index >> 2) & 1) - 1),
        )
        return wp.cw_mul(sign, size)

    @wp.func
    def capsule_point(index: int, half: scalar):
        """Ends first, then three points between them."""
        share = scalar(2 * index - 1)
        if index >= 2:
            share = scalar(index - 3) * scalar(0.5)
        return vec3(scalar(0.0), scalar(0.0), share * half)

    @wp.func
    def sliding_point(half: scalar, other: transform, other_half: scalar):
        """The point of a segment along z that is nearest to another segment, placed at `other`."""
        zero, one = scalar(0.0), scalar(1.0)
        centre = wp.transform_get_translation(other)
        along = wp.quat_rotate(wp.transform_get_rotation(other), vec3(zero, zero, one))
        cosine = along[2]
        to_other = wp.dot(along, centre)
        # Nearest points of two lines; parallel lines are near everywhere, and the middle is taken.
        free = (centre[2] - cosine * to_other) / (one - cosine * cosine + scalar(1.0e-4))
        near = wp.clamp(free, -half, half)
        opposite = wp.clamp(cosine * near - to_other, -other_half, other_half)
        return vec3(zero, zero, wp.clamp(centre[2] + cosine * opposite, -half, half))

    @wp.func
    def rolling_point(cap: vec3, radius: scalar, normal: vec3):
        """The point of the rim around `cap` that lies lowest against `normal`; its middle where the cap is level."""
        flat = wp.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + scalar(4.0e-4))
        return cap - vec3(normal[0], normal[1], scalar(0.0)) * (radius / flat)

    @wp.func
    def rim_point(index: int, size: vec3):
        turn = scalar(index) * scalar(wp.static(2.0 * math.pi / CYLINDER_RIM))
        up = scalar(1.0)
        if index < wp.static(CYLINDER_RIM):
            up = scalar(-1.0)
        return vec3(size[0] * wp.cos(turn), size[0] * wp.sin(turn), up * size[1])

    @wp.func
    def probe_point(
        kind: int,
        index: int,
        size: vec3,
        relative: transform,
        other_size: vec3,
        vertices: wp.array(dtype=vec3),
    ):
        """A probe in the frame of its shape; the middle of a rim that rolls. `relative` leads to the other's frame."""
        if kind == SPHERE:
            return vec3(scalar(0.0), scalar(0.0), scalar(0.0))
        if kind == CAPSULE:
            if index == _SLIDING:
                return sliding_point(size[1], wp.transform_inverse(relative), other_size[1])
            return capsule_point(index, size[1])
        if kind == BOX:
            return box_corner(index, size)
        if kind == CYLINDER:
            if index < _ROLLING:
                return vec3(scalar(0.0), scalar(0.0), scalar(2 * index - 1) * size[1])
            return rim_point(index - _ROLLING, size)
        return wp.cw_mul(size, vertices[index])

    return probe_point, rolling_point


@functools.cache
def make_surface(scalar):
    """Return the Warp function that finds a point of the world of one shape from the surface of any kind."""
    vec3 = wp.types.vector(3, scalar)
    sphere_surface, capsule_surface, cylinder_surface = make_round_surfaces(scalar)
    box_surface, mesh_surface = make_box_surface(scalar), make_mesh_surface(scalar)
    height_surface = make_height_surface(scalar)

    @wp.func
    def surface(
        kind: int,
        p: vec3,
        size: vec3,
        sharp: bool,
        outward: vec3,
        width: scalar,
        feature: int,
        vertices: wp.array(dtype=vec3),
        faces: wp.array2d(dtype=wp.int32),
        heights: wp.array(dtype=scalar),
        first: int,
        rows: int,
        columns: int,
    ):
        if kind == SPHERE:
            normal, distance, weight = sphere_surface(p, size)
            return normal, distance, weight
        if kind == CAPSULE:
            normal, distance, weight = capsule_surface(p, size)
            return normal, distance, weight
        if kind == CYLINDER:
            normal, distance, weight = cylinder_surface(p, size)
            return normal, distance, weight
        if kind == BOX:
            normal, distance, weight = box_surface(p, size, sharp, outward, width)
            return normal, distance, weight
        if kind == HEIGHT_FIELD:
            normal, distance, weight = height_surface(p, size, heights, first, rows, columns)
            return normal, distance, weight
        if kind == PLANE:
            return vec3(scalar(0.0), scalar(0.0), scalar(1.0)), p[2], scalar(1.0)
        if feature == 0:  # nothing of the mesh is near
            return vec3(scalar(0.0), scalar(0.0), scalar(1.0)), scalar(0.0), scalar(0.0)
        face = wp.abs(feature) - 1
        sign = wp.where(feature > 0, scalar(1.0), scalar(-1.0))
        a = wp.cw_mul(size, vertices[faces[face, 0]])
        b = wp.cw_mul(size, vertices[faces[face, 1]])
        c = wp.cw_mul(size, vertices[faces[face, 2]])
        if size[0] * size[1] * size[2] < scalar(0.0):  # mirrored: the other way around, seen from outside
            normal, distance, weight = mesh_surface(p, a, c, b, sign)
            return normal, distance, weight
        normal, distance, weight = mesh_surface(p, a, b, c, sign)
        return normal, distance, weight

    return surface


@functools.cache
def make_place(scalar):
    """Return the Warp function that places a shape in the world."""
    transform = wp.types.transformation(scalar)

    @wp.func
    def place(pose: wp.array2d(dtype=transform), world: int, body: int, local: transform):
        if body < 0:
            return local
        return pose[world, body] * local

    return place


def make_find_faces(scalar):
    """Return the kernel that finds the face nearest to each probe that a table sets against a mesh; over (B, C)."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)
    probe_point, _ = make_probes(scalar)
    place = make_place(scalar)

    @wp.kernel(module="unique", enable_backward=False)
    def _find_faces(
        # In:
        pose: wp.array2d(dtype=transform),  # (B, N)
        shape_pose: wp.array2d(dtype=transform),  # (B, G)
        size: wp.array2d(dtype=vec3),  # (B, G)
        vertices: wp.array(dtype=vec3),  # (V,)
        shapes: wp.array2d(dtype=wp.int32),  # (G, 5)
        # Model:
        meshes: wp.array(dtype=wp.uint64),  # (G,) scaled; 0 for what is none
        first_face: wp.array(dtype=wp.int32),  # (G,)
        farthest: wp.array(dtype=wp.float32),  # (G,) [m]
        # In and out:
        table: wp.array3d(dtype=wp.int32),  # (B, C, 4)
    ):
        world, contact = wp.tid()
        a, b = table[world, contact, 0], table[world, contact, 2]
        if a < 0:
            return
        if meshes[b] == wp.uint64(0):
            return
        place_a = place(pose, world, shapes[a, 1], shape_pose[world, a])
        place_b = place(pose, world, shapes[b, 1], shape_pose[world, b])
        relative = wp.transform_inverse(place_b) * place_a
        probe = table[world, contact, 1]
        local = probe_point(shapes[a, 0], probe, size[world, a], relative, size[world, b], vertices)
        p = wp.transform_point(relative, local)
        query = wp.mesh_query_point_sign_normal(
            meshes[b], wp.vec3(float(p[0]), float(p[1]), float(p[2])), farthest[b] + float(size[world, a][0])
        )
        if query.result:
            face = first_face[b] + query.face + 1
            table[world, contact, 3] = wp.where(query.sign < 0.0, -face, face)

    return _find_faces


def make_place_contacts(scalar):
    """Return the kernel that places every contact of a table; launched over (B, C).

    A contact is a probe of shape a (a point, or the centre of a ball) against the surface of shape b. Which probe and
    which face of a mesh is given and fixed; everything else is differentiated.
    """
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)
    probe_point, rolling_point = make_probes(scalar)
    surface, box_edges = make_surface(scalar), make_box_edges(scalar)

    place = make_place(scalar)

    @wp.func
    def upright(axis: scalar):
        """Near 1 where a cylinder stands on its cap, near 0 where it lies."""
        square = axis * axis
        fourth = square * square * square * square
        return fourth * fourth

    @wp.kernel(module="unique")
    def _place_contacts(
        # In:
        pose: wp.array2d(dtype=transform),  # (B, N) of the bodies
        shape_pose: wp.array2d(dtype=transform),  # (B, G) in the frames of their bodies
        size: wp.array2d(dtype=vec3),  # (B, G)
        vertices: wp.array(dtype=vec3),  # (V,) of all meshes, before their scale
        heights: wp.array(dtype=scalar),  # (H,) of all height fields
        table: wp.array3d(dtype=wp.int32),  # (1 or B, C, 4) shape a, probe, shape b, face of a mesh
        shapes: wp.array2d(
            dtype=wp.int32
        ),  # (G, 5) kind, body; first height, rows and columns of a height field
        faces: wp.array2d(dtype=wp.int32),  # (F, 3)
        # Model:
        width: scalar,  # [m] over which a face of a box ends
        # Out:
        point: wp.array2d(dtype=vec3),  # (B, C) world
        normal: wp.array2d(dtype=vec3),  # (B, C) world, from b to a
        depth: wp.array2d(dtype=scalar),  # (B, C) [m]
        weight: wp.array2d(dtype=scalar),  # (B, C) in [0, 1]
    ):
        world, contact = wp.tid()
        row = wp.min(world, table.shape[0] - 1)
        a, b = table[row, contact, 0], table[row, contact, 2]
        if a < 0:  # this world has fewer contacts than others
            return
        probe = table[row, contact, 1]
        size_a, size_b = size[world, a], size[world, b]
        place_a = place(pose, world, shapes[a, 1], shape_pose[world, a])
        place_b = place(pose, world, shapes[b, 1], shape_pose[world, b])
        if probe >= _EDGE:
            if shapes[a, 0] == BOX:
                at, away, deep, share = box_edges(place_a, size_a, place_b, size_b, probe - _EDGE)
                point[world, contact] = at
                normal[world, contact] = away
                depth[world, contact] = deep
                weight[world, contact] = share
                return
        relative = wp.transform_inverse(place_b) * place_a
        turn = wp.transform_get_rotation(relative)
        kind_a, kind_b = shapes[a, 0], shapes[b, 0]
        local = probe_point(kind_a, probe, size_a, relative, size_b, vertices)
        sharp = kind_a != SPHERE and kind_a != CAPSULE
        radius = scalar(0.0)
        if not sharp:
            radius = size_a[0]
        if kind_a == CYLINDER and probe < _ROLLING:
            inner = wp.transform_point(relative, local)
            out, _gap, _share = surface(
                kind_b, inner, size_b, False, inner, width, table[row, contact, 3],
                vertices, faces, heights, shapes[b, 2], shapes[b, 3], shapes[b, 4],
            )  # fmt: skip
            local = rolling_point(local, size_a[0], wp.quat_rotate_inv(turn, out))
        p = wp.transform_point(relative, local)
        out_b, gap, extent = surface(
            kind_b, p, size_b, sharp, wp.quat_rotate(turn, local), width, table[row, contact, 3],
            vertices, faces, heights, shapes[b, 2], shapes[b, 3], shapes[b, 4],
        )  # fmt: skip
        if kind_a == CYLINDER and probe >= _ROLLING:
            extent = extent * upright(wp.quat_rotate_inv(turn, out_b)[2])
        inward = radius - gap
        away_b = wp.quat_rotate(wp.transform_get_rotation(place_b), out_b)
        point[world, contact] = wp.transform_point(place_a, local) - away_b * (radius - scalar(0.5) * inward)
        normal[world, contact] = away_b
        depth[world, contact] = inward
        weight[world, contact] = extent

    return _place_contacts
