"""Kernel of the broad phase."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import warp as wp


def make_sweep(scalar):
    """Return the kernel that counts, then writes, the overlapping pairs that begin with each shape; over (B, G)."""
    vec3 = wp.types.vector(3, scalar)

    @wp.kernel(module="unique", enable_backward=False)
    def _sweep_shapes(
        # In, sorted by the lower end along x:
        centre: wp.array2d(dtype=vec3),  # (B, G)
        radius: wp.array2d(dtype=scalar),  # (B, G)
        shape: wp.array2d(dtype=wp.int32),  # (B, G)
        allowed: wp.array2d(dtype=wp.int32),  # (G, G)
        first: wp.array2d(dtype=wp.int32),  # (B, G) where the pairs of each are written
        write: int,
        # Out:
        found: wp.array2d(dtype=wp.int32),  # (B, G)
        pairs: wp.array2d(dtype=wp.int32),  # (P, 2) smaller index first
    ):
        world, i = wp.tid()
        at, own = centre[world, i], radius[world, i]
        count = int(0)
        for j in range(i + 1, shape.shape[1]):
            both = own + radius[world, j]
            apart = centre[world, j] - at
            if apart[0] > both:  # from here on all begin beyond the end of this one
                break
            if wp.abs(apart[1]) <= both and wp.abs(apart[2]) <= both:
                a = wp.min(shape[world, i], shape[world, j])
                b = wp.max(shape[world, i], shape[world, j])
                if allowed[a, b] != 0:
                    if write != 0:
                        pairs[first[world, i] + count, 0] = a
                        pairs[first[world, i] + count, 1] = b
                    count += 1
        found[world, i] = count

    return _sweep_shapes
