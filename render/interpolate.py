"""Kernels that read vertex attributes off what a pixel sees, and send gradients back to attributes and geometry.

What a pixel sees is up to five pieces of surface: the points where its ray meets the three layers, and for each of the
two fringes the point of its nearest contour that is closest to the pixel. At each of them any attribute is interpolated
linearly in space, which is perspective-correct in the image.

Backward, every face and every contour looks at its pixels again, and writes gradients to places of its own.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import contours, layers, scatter


@functools.cache
def make(scalar):
    """Kernels `layers` and `fringes` for one scalar type, and their adjoints `unlayers` and `unfringes`."""
    shared, found, spread = layers.make(scalar), contours.make(scalar), scatter.make(scalar)
    vec2, vec3, pixel_ray, centre_of = shared.vec2, shared.vec3, shared.pixel_ray, shared.centre_of
    find_contour, touch = found.find_contour, found.touch
    Contour, contour_box, row_span = found.Contour, found.contour_box, found.row_span
    Plane, find_plane, plane_row = shared.Plane, shared.find_plane, shared.plane_row
    find_tile, layer_of = shared.find_tile, shared.layer_of
    Pull, spread_ends = spread.Pull, spread.spread_ends
    module = wp.get_module(f"gradpath.render.interpolate_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))

    @wp.func
    def facing(b: int, edge: wp.vec4i, is_open: int, points: wp.array2d(dtype=vec3)):
        """Which of the two faces of a contour can be seen beside it: 0 or 1."""
        if edge[3] < 0:
            return 0
        p = points[b, edge[0]]
        q = points[b, edge[1]]
        c = points[b, edge[2]]
        front = wp.dot(wp.cross(p, q), c) < zero
        # Where an open surface folds inwards, the face that shows its back is the nearer one.
        if is_open == 1 and wp.dot(wp.cross(q - p, c - p), points[b, edge[3]] - p) > zero:
            front = not front
        if front:
            return 0
        return 1

    @wp.func
    def weights_at(plane: Plane, ray: vec3):
        """Barycentric coordinates of the point where a ray meets a plane."""
        w = vec3(wp.dot(plane.m0, ray), wp.dot(plane.m1, ray), wp.dot(plane.m2, ray))
        return w * (one / (w[0] + w[1] + w[2]))

    @wp.func
    def mix_corners(
        b: int,
        y: int,
        x: int,
        start: int,
        corner: wp.vec3i,
        w: vec3,
        attributes: wp.array3d(dtype=scalar),
        values: wp.array4d(dtype=scalar),
    ):
        for c in range(attributes.shape[2]):
            values[b, y, x, start + c] = (
                w[0] * attributes[b, corner[0], c]
                + w[1] * attributes[b, corner[1], c]
                + w[2] * attributes[b, corner[2], c]
            )

    @wp.func
    def plane_through(b: int, face: wp.vec3i, points: wp.array2d(dtype=vec3)):
        """Edge functions of a face, as far as weights need them."""
        plane = Plane()
        p0 = points[b, face[0]]
        p1 = points[b, face[1]]
        p2 = points[b, face[2]]
        plane.m0 = wp.cross(p1, p2)
        plane.m1 = wp.cross(p2, p0)
        plane.m2 = wp.cross(p0, p1)
        return plane

    @wp.kernel(module=module, enable_backward=False)
    def _interpolate_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F: vertices
        corners: wp.array(dtype=wp.vec3i),  # F: rows of `attributes`
        slots: wp.vec3i,  # place of the layers among the pieces, -1 for none
        # In:
        points: wp.array2d(dtype=vec3),  # B V, homogeneous
        limits: vec3,  # near, far, radius
        shape: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        attributes: wp.array3d(dtype=scalar),  # B A C
        # Out:
        values: wp.array4d(dtype=scalar),  # B H W (pieces C)
    ):
        b, tile = find_tile(first + wp.tid(), shape, covered.shape[1], covered.shape[2])
        centre = centre_of(covered.shape[1], covered.shape[2])
        channels = attributes.shape[2]
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                hit = wp.vec3i(-1, -1, -1)
                if covered[b, y, x] != wp.uint8(0):
                    hit = hits[b, y, x]
                for k in range(3):
                    if slots[k] >= 0:
                        start = slots[k] * channels
                        if hit[k] >= 0:
                            plane = plane_through(b, faces[hit[k]], points)
                            w = weights_at(plane, pixel_ray(x, y, centre))
                            mix_corners(b, y, x, start, corners[hit[k]], w, attributes, values)
                        else:
                            for c in range(channels):
                                values[b, y, x, start + c] = zero

    @wp.func
    def spread_corners(
        b: int,
        f: int,
        g: wp.vec4i,  # y, x, and the first channel of the piece
        corner: wp.vec3i,
        w: vec3,
        attributes: wp.array3d(dtype=scalar),
        g_values: wp.array4d(dtype=scalar),
        parts: wp.array4d(dtype=scalar),
    ):
        """Add a piece's gradient to the attributes of a face's corners, and return that of the weights."""
        g_w = vec3(zero, zero, zero)
        for c in range(attributes.shape[2]):
            seed = g_values[b, g[0], g[1], g[2] + c]
            if seed != zero:
                g_w += seed * vec3(
                    attributes[b, corner[0], c], attributes[b, corner[1], c], attributes[b, corner[2], c]
                )
                for k in range(3):
                    parts[b, f, k, c] = parts[b, f, k, c] + seed * w[k]
        return g_w

    @wp.kernel(module=module, enable_backward=False)
    def _uninterpolate_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        face_info: wp.array(dtype=wp.vec2i),  # F: component, open
        corners: wp.array(dtype=wp.vec3i),  # F
        slots: wp.vec3i,
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        limits: vec3,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        attributes: wp.array3d(dtype=scalar),  # B A C
        g_values: wp.array4d(dtype=scalar),  # B H W (pieces C)
        # Out:
        g_corners: wp.array3d(dtype=vec3),  # B F 3: gradient of the corners' places
        parts: wp.array4d(dtype=scalar),  # B F 3 C, zeroed: gradient of their attributes
    ):
        item = first + wp.tid()
        b = item // faces.shape[0]
        f = item - b * faces.shape[0]
        tile = wp.vec4i(0, 0, covered.shape[2], covered.shape[1])
        centre = centre_of(covered.shape[1], covered.shape[2])
        plane = find_plane(b, faces[f], face_info[f][1], points, limits, tile, centre)
        g_0 = vec3(zero, zero, zero)
        g_1 = vec3(zero, zero, zero)
        g_2 = vec3(zero, zero, zero)
        for y in range(plane.begin[1], plane.end[1] + 1):
            begin, end = plane_row(plane, y, centre)
            for x in range(begin, end + 1):
                layer = int(-1)
                if covered[b, y, x] != wp.uint8(0):
                    layer = layer_of(hits[b, y, x], f)
                if layer >= 0 and slots[layer] >= 0:
                    ray = pixel_ray(x, y, centre)
                    w = weights_at(plane, ray)
                    seed = wp.vec4i(y, x, slots[layer] * attributes.shape[2], 0)
                    g_w = spread_corners(b, f, seed, corners[f], w, attributes, g_values, parts)
                    # The weights are inverse([p0 p1 p2]) ray, scaled to the sum 1.
                    mean = wp.dot(g_w, w)
                    turned = (
                        plane.m0 * (g_w[0] - mean) + plane.m1 * (g_w[1] - mean) + plane.m2 * (g_w[2] - mean)
                    )
                    pull = turned * (-one / plane.volume)
                    g_0 += w[0] * pull
                    g_1 += w[1] * pull
                    g_2 += w[2] * pull
        g_corners[b, f, 0] = g_0
        g_corners[b, f, 1] = g_1
        g_corners[b, f, 2] = g_2

    @wp.func
    def share_of(contour: Contour, t: scalar, z: scalar):
        """Where on the line of a contour, seen at t, its point lies in space; and where on the whole edge."""
        part = t * contour.inverse_b * z
        return part, (one - part) * contour.cut_a + part * (one - contour.cut_b)

    @wp.kernel(module=module, enable_backward=False)
    def _interpolate_fringes(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E
        edge_info: wp.array(dtype=wp.vec2i),  # E
        ends: wp.array(
            dtype=wp.vec4i
        ),  # E: rows of `attributes` at both ends, in the first face and the second
        # In:
        points: wp.array2d(dtype=vec3),  # B V, homogeneous
        limits: vec3,  # near, far, radius
        shape: wp.vec2i,
        records: wp.array3d(dtype=wp.int32),  # B H W
        nearest: wp.array(dtype=wp.vec4i),  # N
        attributes: wp.array3d(dtype=scalar),  # B A C
        # Out:
        values: wp.array4d(dtype=scalar),  # B H W (pieces C)
    ):
        height = records.shape[1]
        width = records.shape[2]
        b, tile = find_tile(first + wp.tid(), shape, height, width)
        centre = centre_of(height, width)
        whole = wp.vec4i(0, 0, width, height)
        channels = attributes.shape[2]
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                for k in range(2):
                    e = int(-1)
                    r = records[b, y, x] - 1
                    if r >= 0:
                        e = nearest[r][2 + k]
                    start = 2 * k * channels
                    if e >= 0:
                        contour = find_contour(b, edges[e], edge_info[e][1], points, limits, whole, centre)
                        contact = touch(contour, x, y, limits[2])
                        side = 2 * facing(b, edges[e], edge_info[e][1], points)
                        i = ends[e][side]
                        j = ends[e][side + 1]
                        _part, share = share_of(contour, contact.t, contact.z)
                        for c in range(channels):
                            values[b, y, x, start + c] = (
                                attributes[b, i, c] * (one - share) + attributes[b, j, c] * share
                            )
                    else:
                        for c in range(channels):
                            values[b, y, x, start + c] = zero

    @wp.func
    def spread_row(
        b: int,
        e: int,
        side: int,
        g: wp.vec4i,  # y, x, and the first channel of the fringe
        end: wp.vec4i,
        share: scalar,
        attributes: wp.array3d(dtype=scalar),
        g_values: wp.array4d(dtype=scalar),
        parts: wp.array4d(dtype=scalar),
    ):
        """Add a fringe's gradient to the attributes of its contour's ends, and return that of the share."""
        g_share = zero
        for c in range(attributes.shape[2]):
            seed = g_values[b, g[0], g[1], g[2] + c]
            if seed != zero:
                g_share += seed * (attributes[b, end[side + 1], c] - attributes[b, end[side], c])
                parts[b, e, side, c] = parts[b, e, side, c] + seed * (one - share)
                parts[b, e, side + 1, c] = parts[b, e, side + 1, c] + seed * share
        return g_share

    @wp.func
    def pull_share(contour: Contour, x: int, y: int, t: scalar, z: scalar, clamped: wp.bool, g_share: scalar):
        """Gradient of a contour's ends from that of the share at a pixel."""
        pull = Pull()
        part, _share = share_of(contour, t, z)
        g_part = g_share * (one - contour.cut_a - contour.cut_b)
        if not clamped:
            # part = t / z_b : (1 - t) / z_a, and t = w.e / e.e moves with both ends of the edge.
            g_t = g_part * contour.inverse_a * contour.inverse_b * z * z * contour.inverse_length2
            w = vec2(scalar(x) + half - contour.start[0], scalar(y) + half - contour.start[1])
            turn = w - contour.along * (scalar(2.0) * t)
            pull.start = -(turn + contour.along) * g_t
            pull.finish = turn * g_t
        spread = g_part * part * (one - part)
        pull.inverse = vec2(-spread / contour.inverse_a, spread / contour.inverse_b)
        pull.cut = vec2(g_share * (one - part), -g_share * part)
        return pull

    @wp.kernel(module=module, enable_backward=False)
    def _uninterpolate_fringes(
        first: int,
        # Model:
        edges: wp.array(dtype=wp.vec4i),  # E
        edge_info: wp.array(dtype=wp.vec2i),  # E
        ends: wp.array(dtype=wp.vec4i),  # E
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        limits: vec3,
        records: wp.array3d(dtype=wp.int32),  # B H W
        nearest: wp.array(dtype=wp.vec4i),  # N
        attributes: wp.array3d(dtype=scalar),  # B A C
        g_values: wp.array4d(dtype=scalar),  # B H W (pieces C)
        # Out:
        g_ends: wp.array3d(dtype=vec3),  # B E 2: gradient of the ends' places
        parts: wp.array4d(dtype=scalar),  # B E 4 C, zeroed: gradient of their attributes
    ):
        item = first + wp.tid()
        b = item // edges.shape[0]
        e = item - b * edges.shape[0]
        edge = edges[e]
        tile = wp.vec4i(0, 0, records.shape[2], records.shape[1])
        centre = centre_of(records.shape[1], records.shape[2])
        contour = find_contour(b, edge, edge_info[e][1], points, limits, tile, centre)
        if contour.side == zero:
            g_ends[b, e, 0] = vec3(zero, zero, zero)
            g_ends[b, e, 1] = vec3(zero, zero, zero)
            return
        box = contour_box(contour, limits[2], tile)
        side = 2 * facing(b, edge, edge_info[e][1], points)
        total = Pull()
        for y in range(box[1], box[3] + 1):
            begin, end = row_span(contour, y, box[0], box[2], limits[2])
            for x in range(begin, end + 1):
                r = records[b, y, x] - 1
                if r >= 0:
                    for k in range(2):
                        if nearest[r][2 + k] == e:
                            contact = touch(contour, x, y, limits[2])
                            _part, share = share_of(contour, contact.t, contact.z)
                            seed = wp.vec4i(y, x, 2 * k * attributes.shape[2], 0)
                            g_share = spread_row(
                                b, e, side, seed, ends[e], share, attributes, g_values, parts
                            )
                            pull = pull_share(contour, x, y, contact.t, contact.z, contact.clamped, g_share)
                            total.start += pull.start
                            total.finish += pull.finish
                            total.inverse += pull.inverse
                            total.cut += pull.cut
        g_p, g_q = spread_ends(points[b, edge[0]], points[b, edge[1]], contour, total)
        g_ends[b, e, 0] = g_p
        g_ends[b, e, 1] = g_q

    return SimpleNamespace(
        layers=_interpolate_layers,
        unlayers=_uninterpolate_layers,
        fringes=_interpolate_fringes,
        unfringes=_uninterpolate_fringes,
    )
