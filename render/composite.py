"""Kernels that composite layers and fringes front to back in every pixel, and the adjoint of that.

What is composited, and why, is told in `gradpath.render.contours`.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.render import layers


@functools.cache
def make(scalar):
    """Kernels `composite` and `weigh` for one scalar type, and their adjoints `uncomposite` and `unweigh`."""
    shared = layers.make(scalar)
    vec3, vec4, nothing = shared.vec3, shared.vec4, shared.nothing
    pixel_ray, spread_hit = shared.pixel_ray, shared.spread_hit
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
    def is_plain(depths: vec3, distances: vec4, sums: vec4, radius: scalar):
        """Whether the pixel is away from all contours that matter: its first layer hides all, or there is nothing."""
        return sums[0] <= zero and (depths[0] >= nothing or distances[0] >= radius)

    @wp.kernel(module=module, enable_backward=False)
    def _composite_layers(
        first: int,
        # In:
        limits: vec3,  # near, far, radius
        depths: wp.array3d(dtype=vec3),  # B H W
        distances: wp.array3d(dtype=vec4),  # B H W
        sums: wp.array3d(dtype=vec4),  # B H W
        # Out:
        alpha: wp.array3d(dtype=scalar),  # B H W
        depth: wp.array3d(dtype=scalar),  # B H W
    ):
        world, y, x = wp.tid()
        b = first + world
        z = depths[b, y, x]
        if is_plain(z, distances[b, y, x], sums[b, y, x], limits[2]):
            if z[0] < nothing:
                alpha[b, y, x] = one
                depth[b, y, x] = z[0]
            else:
                alpha[b, y, x] = zero
                depth[b, y, x] = limits[1]
            return
        cover, _slope = coverages(z, distances[b, y, x], sums[b, y, x], limits[2])
        value = log_depths(z, sums[b, y, x])
        clear, last = behind(z, limits[1])
        through = scalar(1.0)
        log_depth = scalar(0.0)
        for k in range(4):
            log_depth += through * cover[k] * value[k]
            through *= one - cover[k]
        alpha[b, y, x] = one - through * clear
        depth[b, y, x] = wp.exp(log_depth + through * last)

    @wp.kernel(module=module, enable_backward=False)
    def _uncomposite_layers(
        first: int,
        # Model:
        faces: wp.array(dtype=wp.vec3i),  # F
        # In:
        points: wp.array2d(dtype=vec3),  # B V
        cameras: wp.array(dtype=vec4),  # B
        limits: vec3,
        depths: wp.array3d(dtype=vec3),  # B H W
        hits: wp.array3d(dtype=wp.vec3i),  # B H W
        distances: wp.array3d(dtype=vec4),  # B H W
        sums: wp.array3d(dtype=vec4),  # B H W
        g_alpha: wp.array3d(dtype=scalar),  # B H W
        g_depth: wp.array3d(dtype=scalar),  # B H W
        # Out:
        g_distances: wp.array3d(dtype=vec4),  # B H W, zeroed: as distances
        fringes: wp.array3d(
            dtype=vec4
        ),  # B H W, zeroed: gradient per weight and log depth of the fringes 0 and 1
        g_points: wp.array2d(dtype=vec3),  # B V
        g_cameras: wp.array(dtype=vec4),  # B
    ):
        world, y, x = wp.tid()
        b = first + world
        z = depths[b, y, x]
        total = sums[b, y, x]
        if is_plain(z, distances[b, y, x], total, limits[2]):
            face_0 = hits[b, y, x][0]
            g_z = g_depth[b, y, x]
            if face_0 >= 0 and g_z != zero:
                ray_0 = pixel_ray(x, y, cameras[b])
                spread_hit(b, faces[face_0], ray_0, cameras[b], g_z, points, g_points, g_cameras)
            return
        cover, slope = coverages(z, distances[b, y, x], total, limits[2])
        value = log_depths(z, total)
        clear, last = behind(z, limits[1])
        # Front to back: transmittance before each element, and the log depth of all that lies behind it.
        t1 = one - cover[0]
        t2 = t1 * (one - cover[1])
        t3 = t2 * (one - cover[2])
        t4 = t3 * (one - cover[3])
        rest3 = last
        rest2 = cover[3] * value[3] + (one - cover[3]) * rest3
        rest1 = cover[2] * value[2] + (one - cover[2]) * rest2
        rest0 = cover[1] * value[1] + (one - cover[1]) * rest1
        g_log = g_depth[b, y, x] * wp.exp(cover[0] * value[0] + t1 * rest0)
        g_clear = g_alpha[b, y, x] * clear
        c01 = (one - cover[0]) * (one - cover[1])
        c23 = (one - cover[2]) * (one - cover[3])
        g_f0 = g_log * (value[0] - rest0) + g_clear * (one - cover[1]) * c23
        g_l0 = g_log * t1 * (value[1] - rest1) + g_clear * (one - cover[0]) * c23
        g_f1 = g_log * t2 * (value[2] - rest2) + g_clear * c01 * (one - cover[3])
        g_l1 = g_log * t3 * (value[3] - rest3) + g_clear * c01 * (one - cover[2])
        g_distances[b, y, x] = vec4(g_l0 * slope[1], g_l1 * slope[3], g_f0 * slope[0], g_f1 * slope[2])
        per_weight = vec4(zero, value[0], zero, value[2])
        if total[0] > zero:
            per_weight[0] = g_log * cover[0] / total[0]
        if total[2] > zero:
            per_weight[2] = g_log * t2 * cover[2] / total[2]
        fringes[b, y, x] = per_weight
        hit = hits[b, y, x]
        camera = cameras[b]
        ray = pixel_ray(x, y, camera)
        if hit[0] >= 0 and g_log != zero:
            g = g_log * t1 * cover[1] / z[0]
            spread_hit(b, faces[hit[0]], ray, camera, g, points, g_points, g_cameras)
        if hit[1] >= 0 and g_log != zero:
            g = g_log * t3 * cover[3] / z[1]
            spread_hit(b, faces[hit[1]], ray, camera, g, points, g_points, g_cameras)
        if hit[2] >= 0 and t4 * g_log != zero:
            spread_hit(b, faces[hit[2]], ray, camera, g_log * t4 / z[2], points, g_points, g_cameras)

    @wp.kernel(module=module, enable_backward=False)
    def _weigh_layers(
        first: int,
        # In:
        limits: vec3,  # near, far, radius
        depths: wp.array3d(dtype=vec3),  # B H W
        distances: wp.array3d(dtype=vec4),  # B H W
        sums: wp.array3d(dtype=vec4),  # B H W
        # Out:
        weights: wp.array4d(
            dtype=scalar
        ),  # B H W 6: fringe 0, layer 0, fringe 1, layer 1, layer 2, background
    ):
        world, y, x = wp.tid()
        b = first + world
        z = depths[b, y, x]
        cover, _slope = coverages(z, distances[b, y, x], sums[b, y, x], limits[2])
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
        depths: wp.array3d(dtype=vec3),  # B H W
        distances: wp.array3d(dtype=vec4),  # B H W
        sums: wp.array3d(dtype=vec4),  # B H W
        g_weights: wp.array4d(dtype=scalar),  # B H W 6
        # Out:
        g_distances: wp.array3d(dtype=vec4),  # B H W: as distances
    ):
        world, y, x = wp.tid()
        b = first + world
        z = depths[b, y, x]
        cover, slope = coverages(z, distances[b, y, x], sums[b, y, x], limits[2])
        clear, _last = behind(z, limits[1])
        # Back to front: what lies behind an element is worth `rest` per transmittance.
        rest = clear * g_weights[b, y, x, 5] + (one - clear) * g_weights[b, y, x, 4]
        gain = vec4(zero, zero, zero, zero)
        for j in range(4):
            k = 3 - j
            gain[k] = g_weights[b, y, x, k] - rest
            rest += cover[k] * gain[k]
        t1 = one - cover[0]
        t2 = t1 * (one - cover[1])
        t3 = t2 * (one - cover[2])
        g_distances[b, y, x] = vec4(
            gain[1] * t1 * slope[1], gain[3] * t3 * slope[3], gain[0] * slope[0], gain[2] * t2 * slope[2]
        )

    return SimpleNamespace(
        composite=_composite_layers,
        uncomposite=_uncomposite_layers,
        weigh=_weigh_layers,
        unweigh=_unweigh_layers,
    )
