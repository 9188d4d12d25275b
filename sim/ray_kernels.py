"""The kernel that finds what rays hit first; without gradient, which `gradpath.sim.rays` has from what it returns."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import warp as wp

from gradpath.sim.shapes import ShapeKind

SPHERE, BOX, CYLINDER, CAPSULE, PLANE = (wp.constant(int(kind)) for kind in list(ShapeKind)[:5])
_FARTHEST = wp.constant(1.0e15)  # [m]; its square is still a float32
_FACES = wp.constant(64)  # of a mesh that a ray leaves before one that it enters


def make_find_hits(scalar):
    """Return the kernel, launched over (B, R); normals and points are in the frames of the shapes that are hit."""
    vec3, transform = wp.types.vector(3, scalar), wp.types.transformation(scalar)

    @wp.struct
    class Hit:
        """Distance along the ray, or a negative one; normal; how far the surface moves along it with each size."""

        distance: scalar
        normal: vec3
        growth: vec3

    @wp.func
    def hit(distance: scalar, normal: vec3, growth: vec3):
        found = Hit()
        found.distance = distance
        found.normal = normal
        found.growth = growth
        return found

    @wp.func
    def no_hit():
        return hit(scalar(-1.0), vec3(), vec3())

    @wp.func
    def entry(a: scalar, b: scalar, c: scalar):
        """The smaller root of a t^2 + 2 b t + c, where a ray enters a round surface from outside; else negative."""
        square = b * b - a * c
        if c <= scalar(0.0) or b >= scalar(0.0) or square < scalar(0.0) or a <= scalar(0.0):
            return scalar(-1.0)
        return c / (wp.sqrt(square) - b)

    @wp.func
    def hit_ball(start: vec3, way: vec3, height: scalar, radius: scalar):
        """A ball about (0, 0, height); sizes are a radius and a half length."""
        from_centre = start - vec3(scalar(0.0), scalar(0.0), height)
        t = entry(
            wp.dot(way, way), wp.dot(from_centre, way), wp.dot(from_centre, from_centre) - radius * radius
        )
        normal = (from_centre + t * way) / radius
        return hit(t, normal, vec3(scalar(1.0), wp.sign(height) * normal[2], scalar(0.0)))

    @wp.func
    def hit_box(start: vec3, way: vec3, size: vec3):
        enter, leave, axis = scalar(-1.0), scalar(_FARTHEST), 0
        for k in range(3):
            if way[k] == scalar(0.0):
                if wp.abs(start[k]) >= size[k]:
                    return no_hit()
            else:
                reach = size[k] / wp.abs(way[k])
                middle = -start[k] / way[k]
                if middle - reach > enter:
                    enter = middle - reach
                    axis = k
                leave = wp.min(leave, middle + reach)
        if enter <= scalar(0.0) or enter > leave:
            return no_hit()
        normal, growth = vec3(), vec3()
        normal[axis] = -wp.sign(way[axis])
        growth[axis] = scalar(1.0)
        return hit(enter, normal, growth)

    @wp.func
    def hit_wall(start: vec3, way: vec3, radius: scalar):
        """The round wall of an endless cylinder along z."""
        a, b = way[0] * way[0] + way[1] * way[1], start[0] * way[0] + start[1] * way[1]
        t = entry(a, b, start[0] * start[0] + start[1] * start[1] - radius * radius)
        normal = vec3(start[0] + t * way[0], start[1] + t * way[1], scalar(0.0)) / radius
        return hit(t, normal, vec3(scalar(1.0), scalar(0.0), scalar(0.0)))

    @wp.func
    def hit_cylinder(start: vec3, way: vec3, size: vec3):
        wall = hit_wall(start, way, size[0])
        if wall.distance > scalar(0.0) and wp.abs(start[2] + wall.distance * way[2]) <= size[1]:
            return wall
        if start[2] * way[2] < scalar(0.0) and wp.abs(start[2]) > size[1]:
            t = (wp.abs(start[2]) - size[1]) / wp.abs(way[2])
            x, y = start[0] + t * way[0], start[1] + t * way[1]
            if x * x + y * y <= size[0] * size[0]:
                normal = vec3(scalar(0.0), scalar(0.0), wp.sign(start[2]))
                return hit(t, normal, vec3(scalar(0.0), scalar(1.0), scalar(0.0)))
        return no_hit()

    @wp.func
    def hit_capsule(start: vec3, way: vec3, size: vec3):
        beyond = start[2] - wp.clamp(start[2], -size[1], size[1])
        square = start[0] * start[0] + start[1] * start[1] + beyond * beyond
        if square <= size[0] * size[0]:
            return no_hit()
        wall = hit_wall(start, way, size[0])
        if wall.distance > scalar(0.0) and wp.abs(start[2] + wall.distance * way[2]) <= size[1]:
            return wall
        top, bottom = hit_ball(start, way, size[1], size[0]), hit_ball(start, way, -size[1], size[0])
        if bottom.distance > scalar(0.0) and (top.distance <= scalar(0.0) or bottom.distance < top.distance):
            return bottom
        return top

    @wp.func
    def hit_mesh(mesh: wp.uint64, start: vec3, way: vec3, size: vec3):
        """The tree is float32; only the face comes from it. Faces that the ray leaves through are passed."""
        scaled = wp.cw_div(way, size)
        length = wp.length(scaled)
        origin = wp.cw_div(start, size)
        direction = wp.vec3(float(scaled[0] / length), float(scaled[1] / length), float(scaled[2] / length))
        begin = scalar(0.0)
        for _turn in range(_FACES):
            at = origin + begin * (scaled / length)
            query = wp.mesh_query_ray(
                mesh, wp.vec3(float(at[0]), float(at[1]), float(at[2])), direction, _FARTHEST
            )
            if not query.result:
                return no_hit()
            a = wp.mesh_eval_position(mesh, query.face, 1.0, 0.0)
            b = wp.mesh_eval_position(mesh, query.face, 0.0, 1.0)
            c = wp.mesh_eval_position(mesh, query.face, 0.0, 0.0)
            corner = vec3(scalar(a[0]), scalar(a[1]), scalar(a[2]))
            normal = wp.cross(
                vec3(scalar(b[0]), scalar(b[1]), scalar(b[2])) - corner,
                vec3(scalar(c[0]), scalar(c[1]), scalar(c[2])) - corner,
            )
            # What is outside of a mesh stays outside of it when it is scaled, or mirrored.
            true = wp.normalize(wp.cw_div(normal, size))
            if wp.dot(true, way) < scalar(0.0):
                t = wp.dot(normal, corner - origin) / wp.dot(normal, scaled)
                return hit(t, true, wp.cw_mul(true, origin + t * scaled))
            begin += scalar(query.t) * scalar(1.00001) + scalar(1.0e-5)
        return no_hit()

    @wp.func
    def hit_shape(kind: int, mesh: wp.uint64, start: vec3, way: vec3, size: vec3):
        if kind == SPHERE:
            found = hit_ball(start, way, scalar(0.0), size[0])
            found.growth = vec3(scalar(1.0), scalar(0.0), scalar(0.0))
            return found
        if kind == BOX:
            return hit_box(start, way, size)
        if kind == CYLINDER:
            return hit_cylinder(start, way, size)
        if kind == CAPSULE:
            return hit_capsule(start, way, size)
        if kind == PLANE:
            if start[2] <= scalar(0.0) or way[2] >= scalar(0.0):
                return no_hit()
            return hit(-start[2] / way[2], vec3(scalar(0.0), scalar(0.0), scalar(1.0)), vec3())
        return hit_mesh(mesh, start, way, size)

    @wp.kernel(module="unique", enable_backward=False)
    def _find_hits(
        # Model:
        kind: wp.array(dtype=wp.int32),  # (G,)
        meshes: wp.array(dtype=wp.uint64),  # (G,), 0 for what is none
        pose: wp.array2d(dtype=transform),  # (B, G) in the world
        size: wp.array2d(dtype=vec3),  # (B, G)
        # In:
        start: wp.array2d(dtype=vec3),  # (B, R) in the world
        way: wp.array2d(dtype=vec3),  # (B, R)
        farthest: scalar,
        # Out:
        shape: wp.array2d(dtype=wp.int32),  # (B, R), -1 where nothing is hit
        point: wp.array2d(dtype=vec3),  # (B, R)
        normal: wp.array2d(dtype=vec3),  # (B, R)
        growth: wp.array2d(dtype=vec3),  # (B, R)
    ):
        world, ray = wp.tid()
        nearest = farthest
        shape[world, ray] = -1
        for g in range(kind.shape[0]):
            inverse = wp.transform_inverse(pose[world, g])
            local = wp.transform_point(inverse, start[world, ray])
            along = wp.transform_vector(inverse, way[world, ray])
            found = hit_shape(kind[g], meshes[g], local, along, size[world, g])
            if found.distance > scalar(0.0) and found.distance < nearest:
                nearest = found.distance
                shape[world, ray] = g
                point[world, ray] = local + nearest * along
                normal[world, ray] = found.normal
                growth[world, ray] = found.growth

    return _find_hits
