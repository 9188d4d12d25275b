"""Kernels that sum, for each vertex or row of attributes, what was found at corners of faces and ends of edges.

Adjoints write their part of a vertex's gradient to a place of its own, and these are added in a fixed order: gradients
are the same to the bit in every run, on the GPU too, and however many threads found them.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp


@functools.cache
def make(scalar):
    """Kernels `collect` and `collect_rows` for one scalar type."""
    vec3 = wp.types.vector(3, scalar)
    module = wp.get_module(f"gradpath.render.incidence_{scalar.__name__}")
    zero = wp.constant(scalar(0.0))

    @wp.kernel(module=module, enable_backward=False)
    def _collect_vertices(
        first: int,
        # Model:
        starts: wp.array(dtype=wp.int32),  # V + 1: where the places of each vertex begin
        places: wp.array(dtype=wp.int32),  # N: rows of `parts`, vertex by vertex
        # In:
        parts: wp.array2d(dtype=vec3),  # B N
        # Out:
        g_points: wp.array2d(dtype=vec3),  # B V
    ):
        item = first + wp.tid()
        b = item // g_points.shape[1]
        v = item - b * g_points.shape[1]
        total = vec3(zero, zero, zero)
        if v < starts.shape[0] - 1:  # vertices beyond belong to no face
            for i in range(starts[v], starts[v + 1]):
                total += parts[b, places[i]]
        g_points[b, v] = g_points[b, v] + total

    @wp.kernel(module=module, enable_backward=False)
    def _collect_rows(
        first: int,
        # Model:
        starts: wp.array(dtype=wp.int32),  # A + 1
        places: wp.array(dtype=wp.int32),  # N
        # In:
        parts: wp.array3d(dtype=scalar),  # B N C
        # Out:
        g_rows: wp.array3d(dtype=scalar),  # B A C
    ):
        item = first + wp.tid()
        b = item // g_rows.shape[1]
        row = item - b * g_rows.shape[1]
        if row < starts.shape[0] - 1:
            for c in range(g_rows.shape[2]):
                total = scalar(0.0)
                for i in range(starts[row], starts[row + 1]):
                    total += parts[b, places[i], c]
                g_rows[b, row, c] = g_rows[b, row, c] + total

    return SimpleNamespace(collect=_collect_vertices, collect_rows=_collect_rows)
