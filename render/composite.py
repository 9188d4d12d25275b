"""Kernels that composite layers and fringes front to back in every pixel, and the adjoint of that.

What is composited, and why, is told in `gradpath.render.contours`.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import contours, layers


@functools.cache
def make(scalar):
    """Kernels `composite` and `weigh` for one scalar type, and their adjoints `uncomposite` and `unweigh`."""
    shared = layers.make(scalar)
    vec3, vec4, nothing, find_tile = shared.vec3, shared.vec4, shared.nothing, shared.find_tile
    seen_depths = contours.make(scalar).seen_depths
    module = wp.get_module(f"gradpath.render.composite_{scalar.__name__}")
    one = wp.constant(scalar(1.0))
    zero = wp.constant(scalar(0.0))
    half = wp.constant(scalar(0.5))

    @wp.func
    def profile(signed: scalar, radius: scalar):
        """Quintic step from 0 at -radius to 1 at +radius, and its derivative."""
        x = wp.clamp(half * (signed / radius + one), zero, one)
        value = x * x * x * (x * (scalar(6.0) * x - scalar(15.0)) + scalar(10.0))
        return value, scalar(15.0) * x * x * (one - x) * (one - x) / radius

    @wp.func
    def coverages(depths: vec3, distances: vec4, sums: vec4, radius: scalar):
        """Coverage of fringe 0, layer 0, fringe 1, layer 1, and their derivatives by distance."""
        f0, df0 = profile(-distances[2], radius)
        l0, dl0 = profile(distances[0], radius)
        f1, df1 = profile(-distances[3], radius)
        l1, dl1 = profile(distances[1], radius)
        if sums[0] <= zero:
            f0 = zero
            df0 = zero
        if sums[2] <= zero:
            f1 = zero
            df1 = zero
        if depths[0] >= nothing:
            l0 = zero
            dl0 = zero
        if depths[1] >= nothing:
            l1 = zero
            dl1 = zero
        return vec4(f0, l0, f1, l1), vec4(-df0, dl0, -df1, dl1)

    @wp.func
    def log_depths(depths: vec3, sums: vec4):
        """Log depth of fringe 0, layer 0, fringe 1, layer 1; 0 where there is none."""
        out = vec4(zero, zero, zero, zero)
        if sums[0] > zero:
            out[0] = sums[1] / sums[0]
        if depths[0] < nothing:
            out[1] = wp.log(depths[0])
        if sums[2] > zero:
            out[2] = sums[3] / sums[2]
        if depths[1] < nothing:
            out[3] = wp.log(depths[1])
        return out

    @wp.func
    def behind(depths: vec3, far: scalar):
        """Transmittance and log depth of what lies behind the second layer: the third, or the background."""
        if depths[2] < nothing:
            return zero, wp.log(depths[2])
        return one, wp.log(far)

    @wp.func
    def depths_behind(cover: vec4, value: vec4, last: scalar):
        """Log depth of all that lies behind each of the four elements."""
        rest3 = last
        rest2 = cover[3] * value[3] + (one - cover[3]) * rest3
        rest1 = cover[2] * value[2] + (one - cover[2]) * rest2
        rest0 = cover[1] * value[1] + (one - cover[1]) * rest1
        return vec4(rest0, rest1, rest2, rest3)

    @wp.func
    def transmittances(cover: vec4):
        """How much passes the first of the four elements, the first two, three, and all."""
        t1 = one - cover[0]
        t2 = t1 * (one - cover[1])
        t3 = t2 * (one - cover[2])
        return vec4(t1, t2, t3, t3 * (one - cover[3]))

    @wp.kernel(module=module, enable_backward=False)
    def _composite_layers(
        first: int,
        # In:
        limits: vec3,  # near, far, radius
        shape: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        depths: wp.array3d(dtype=vec3),  # B H W
        records: wp.array3d(dtype=wp.int32),  # B H W
        distances: wp.array(dtype=vec4),  # N
        sums: wp.array(dtype=vec4),  # N
        # Out:
        alpha: wp.array3d(dtype=scalar),  # B H W
        depth: wp.array3d(dtype=scalar),  # B H W, or empty where it is not asked for
    ):
        b, tile = find_tile(first + wp.tid(), shape, alpha.shape[1], alpha.shape[2])
        with_depth = depth.shape[0] > 0
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                r = records[b, y, x] - 1
                if r < 0:
                    seen = covered[b, y, x] != wp.uint8(0)
                    alpha[b, y, x] = wp.where(seen, one, zero)
                    if with_depth:
                        if seen:
                            depth[b, y, x] = depths[b, y, x][0]
                        else:
                            depth[b, y, x] = limits[1]
                else:
                    z = seen_depths(b, y, x, covered, depths)
                    cover, _slope = coverages(z, distances[r], sums[r], limits[2])
                    clear, last = behind(z, limits[1])
                    through = transmittances(cover)
                    alpha[b, y, x] = one - through[3] * clear
                    if with_depth:
                        value = log_depths(z, sums[r])
                        rest = depths_behind(cover, value, last)
                        depth[b, y, x] = wp.exp(cover[0] * value[0] + through[0] * rest[0])

    @wp.func
    def gradients_of_coverage(
        cover: vec4, through: vec4, value: vec4, rest: vec4, g_log: scalar, g_clear: scalar
    ):
        """Gradients of the coverages of fringe 0, layer 0, fringe 1, layer 1."""
        c01 = through[1]
        c23 = (one - cover[2]) * (one - cover[3])
        return vec4(
            g_log * (value[0] - rest[0]) + g_clear * (one - cover[1]) * c23,
            g_log * through[0] * (value[1] - rest[1]) + g_clear * (one - cover[0]) * c23,
            g_log * through[1] * (value[2] - rest[2]) + g_clear * c01 * (one - cover[3]),
            g_log * through[2] * (value[3] - rest[3]) + g_clear * c01 * (one - cover[2]),
        )

    @wp.kernel(module=module, enable_backward=False)
    def _uncomposite_layers(
        first: int,
        # In:
        limits: vec3,
        shape: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        depths: wp.array3d(dtype=vec3),  # B H W
        records: wp.array3d(dtype=wp.int32),  # B H W
        distances: wp.array(dtype=vec4),  # N
        sums: wp.array(dtype=vec4),  # N
        g_alpha: wp.array3d(dtype=scalar),  # B H W
        g_depth: wp.array3d(dtype=scalar),  # B H W, or empty: zero
        # Out:
        g_layers: wp.array(dtype=vec3),  # N: gradient of the depths of the layers
        g_distances: wp.array(dtype=vec4),  # N: as distances
        fringes: wp.array(dtype=vec4),  # N: gradient per weight and log depth of the fringes 0 and 1
    ):
        b, tile = find_tile(first + wp.tid(), shape, records.shape[1], records.shape[2])
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                r = records[b, y, x] - 1
                if r >= 0:
                    z = seen_depths(b, y, x, covered, depths)
                    total = sums[r]
                    cover, slope = coverages(z, distances[r], total, limits[2])
                    value = log_depths(z, total)
                    clear, last = behind(z, limits[1])
                    through = transmittances(cover)
                    rest = depths_behind(cover, value, last)
                    g_log = zero
                    if g_depth.shape[0] > 0:
                        g_log = g_depth[b, y, x] * wp.exp(cover[0] * value[0] + through[0] * rest[0])
                    g = gradients_of_coverage(cover, through, value, rest, g_log, g_alpha[b, y, x] * clear)
                    g = wp.cw_mul(g, slope)
                    g_distances[r] = vec4(g[1], g[3], g[0], g[2])
                    per_weight = vec4(zero, value[0], zero, value[2])
                    if total[0] > zero:
                        per_weight[0] = g_log * cover[0] / total[0]
                    if total[2] > zero:
                        per_weight[2] = g_log * through[1] * cover[2] / total[2]
                    fringes[r] = per_weight
                    shares = vec3(through[0] * cover[1], through[2] * cover[3], through[3])
                    g_layers[r] = wp.cw_div(shares, z) * g_log

    @wp.func
    def cover_at(
        b: int,
        y: int,
        x: int,
        radius: scalar,
        covered: wp.array3d(dtype=wp.uint8),
        depths: wp.array3d(dtype=vec3),
        records: wp.array3d(dtype=wp.int32),
        distances: wp.array(dtype=vec4),
        sums: wp.array(dtype=vec4),
    ):
        """Depths of a pixel's layers, its coverages, and their derivatives by distance."""
        z = seen_depths(b, y, x, covered, depths)
        d = vec4(radius, radius, radius, radius)
        total = vec4(zero, zero, zero, zero)
        r = records[b, y, x] - 1
        if r >= 0:
            d = distances[r]
            total = sums[r]
        cover, slope = coverages(z, d, total, radius)
        return z, cover, slope

    @wp.kernel(module=module, enable_backward=False)
    def _weigh_layers(
        first: int,
        # In:
        limits: vec3,  # near, far, radius
        shape: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        depths: wp.array3d(dtype=vec3),  # B H W
        records: wp.array3d(dtype=wp.int32),  # B H W
        distances: wp.array(dtype=vec4),  # N
        sums: wp.array(dtype=vec4),  # N
        # Out:
        weights: wp.array4d(
            dtype=scalar
        ),  # B H W 6: fringe 0, layer 0, fringe 1, layer 1, layer 2, background
    ):
        b, tile = find_tile(first + wp.tid(), shape, covered.shape[1], covered.shape[2])
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                z, cover, _slope = cover_at(b, y, x, limits[2], covered, depths, records, distances, sums)
                clear, _last = behind(z, limits[1])
                through = scalar(1.0)
                for k in range(4):
                    weights[b, y, x, k] = through * cover[k]
                    through *= one - cover[k]
                weights[b, y, x, 4] = through * (one - clear)
                weights[b, y, x, 5] = through * clear

    @wp.kernel(module=module, enable_backward=False)
    def _unweigh_layers(
        first: int,
        # In:
        limits: vec3,
        shape: wp.vec2i,
        covered: wp.array3d(dtype=wp.uint8),  # B H W
        depths: wp.array3d(dtype=vec3),  # B H W
        records: wp.array3d(dtype=wp.int32),  # B H W
        distances: wp.array(dtype=vec4),  # N
        sums: wp.array(dtype=vec4),  # N
        g_weights: wp.array4d(dtype=scalar),  # B H W 6
        # Out:
        g_distances: wp.array(dtype=vec4),  # N: as distances
        fringes: wp.array(dtype=vec4),  # N: no gradient
    ):
        b, tile = find_tile(first + wp.tid(), shape, covered.shape[1], covered.shape[2])
        for y in range(tile[1], tile[3]):
            for x in range(tile[0], tile[2]):
                r = records[b, y, x] - 1
                if r >= 0:
                    z, cover, slope = cover_at(b, y, x, limits[2], covered, depths, records, distances, sums)
                    clear, _last = behind(z, limits[1])
                    # Back to front: what lies behind an element is worth `rest` per transmittance.
                    rest = clear * g_weights[b, y, x, 5] + (one - clear) * g_weights[b, y, x, 4]
                    gain = vec4(zero, zero, zero, zero)
                    for j in range(4):
                        k = 3 - j
                        gain[k] = g_weights[b, y, x, k] - rest
                        rest += cover[k] * gain[k]
                    through = transmittances(cover)
                    g_distances[r] = vec4(
                        gain[1] * through[0] * slope[1],
                        gain[3] * through[2] * slope[3],
                        gain[0] * slope[0],
                        gain[2] * through[1] * slope[2],
                    )
                    fringes[r] = vec4(zero, zero, zero, zero)

    return SimpleNamespace(
        composite=_composite_layers,
        uncomposite=_uncomposite_layers,
        weigh=_weigh_layers,
        unweigh=_unweigh_layers,
    )
