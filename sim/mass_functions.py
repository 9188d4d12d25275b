"""The mass matrix, its factorization along the tree and the solution with it, as Warp functions on scratch memory.

Arguments are as in `gradpath.sim.tree_functions`.

References: Featherstone, Rigid Body Dynamics Algorithms (2008): composite rigid body algorithm (6.2), factorization
along the tree (6.5).
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.spatial import make_memory, make_spatial
from gradpath.sim.tree import SCRATCH_OFFSETS, Trees
from gradpath.sim.tree_functions import (
    ARMATURE,
    BODY,
    COM,
    DAMPING,
    DOF,
    MASS,
    OFFSET,
    ROTATION,
    SCRATCH,
    make_joints,
)

COMPOSITE = wp.constant(SCRATCH_OFFSETS["composite"])


@functools.cache
def make_mass_matrix(scalar):
    """Return the functions that make, factorize and solve with the mass matrix, as attributes."""
    vec3, vec6 = wp.types.vector(3, scalar), wp.types.vector(6, scalar)
    floats = wp.array2d(dtype=scalar)
    space, memory, joints = make_spatial(scalar), make_memory(scalar), make_joints(scalar)

    @wp.func
    def inertia_shift(mass: scalar, moment: vec3, offset: vec3):
        """What the rotational inertia about a point gains when that point moves by -offset."""
        trace = scalar(2.0) * wp.dot(offset, moment) + mass * wp.dot(offset, offset)
        mixed = wp.outer(offset, moment) + wp.outer(moment, offset) + mass * wp.outer(offset, offset)
        return wp.diag(vec3(trace, trace, trace)) - mixed

    @wp.func
    def compose_inertias(tree: Trees, params: floats, row: int, work: floats, slot: int):
        """Write mass, first moment and inertia about its origin of every body with all behind it."""
        for i in range(tree[0].bodies):
            at = i * SCRATCH + COMPOSITE
            mass, com = params[row, i * BODY + MASS], memory.read_vec3(params, row, i * BODY + COM)
            work[slot, at] = mass
            memory.write_vec3(work, slot, at + 1, mass * com)
            memory.write_mat33(
                work, slot, at + 4, joints.inertia(params, row, i) + inertia_shift(mass, vec3(), com)
            )
        for reverse in range(tree[0].bodies):
            i = tree[0].bodies - 1 - reverse
            if tree[0].parent[i] >= 0:
                at = i * SCRATCH
                rotation, offset = (
                    memory.read_mat33(work, slot, at + ROTATION),
                    memory.read_vec3(work, slot, at + OFFSET),
                )
                total = work[slot, at + COMPOSITE]
                moment = rotation * memory.read_vec3(work, slot, at + COMPOSITE + 1)
                turned = rotation * memory.read_mat33(work, slot, at + COMPOSITE + 4) * wp.transpose(rotation)
                above = tree[0].parent[i] * SCRATCH + COMPOSITE
                work[slot, above] = work[slot, above] + total
                memory.add_vec3(work, slot, above + 1, moment + total * offset)
                memory.add_mat33(work, slot, above + 4, turned + inertia_shift(total, moment, offset))

    @wp.func
    def couple_freedoms(
        tree: Trees, params: floats, row: int, work: floats, slot: int, i: int, j: int, dof: int, f: vec6
    ):
        """Add what the wrench f, which freedom `dof` of body i causes at body j, makes joint j carry."""
        kind = tree[0].kind[j]
        for k in range(joints.freedoms(kind)):
            other = tree[0].v_start[j] + k
            if i != j or other <= dof:
                value = joints.force(params, row, kind, j, k, f)
                if i != j and other == dof:  # one mimics the other: both halves of the matrix meet here
                    value = scalar(2.0) * value
                at = tree[0].matrix + wp.max(dof, other) * tree[0].freedoms + wp.min(dof, other)
                work[slot, at] = work[slot, at] + value

    @wp.func(inline=False)
    def make_mass(tree: Trees, params: floats, row: int, work: floats, slot: int, damping_time: scalar):
        """Write the lower half of mass matrix + armature + damping_time * damping."""
        compose_inertias(tree, params, row, work, slot)
        memory.clear_row(work, slot, tree[0].matrix, tree[0].freedoms * tree[0].freedoms)
        for dof in range(tree[0].freedoms):
            at = tree[0].joint_parameters + dof * DOF
            diagonal = params[row, at + ARMATURE] + damping_time * params[row, at + DAMPING]
            work[slot, tree[0].matrix + dof * tree[0].freedoms + dof] = diagonal
        for i in range(tree[0].bodies):
            at = i * SCRATCH + COMPOSITE
            kind = tree[0].kind[i]
            for k in range(joints.freedoms(kind)):
                column = joints.column(params, row, kind, i, k)
                w = space.angular(column)
                moment = memory.read_vec3(work, slot, at + 1)
                p = work[slot, at] * space.linear(column) + wp.cross(w, moment)
                angular = memory.read_mat33(work, slot, at + 4) * w + wp.cross(moment, space.linear(column))
                f = space.join(p, angular)
                dof = tree[0].v_start[i] + k
                couple_freedoms(tree, params, row, work, slot, i, i, dof, f)
                j = int(i)
                while tree[0].parent[j] >= 0:
                    place = j * SCRATCH
                    f = space.wrench_to_parent(
                        memory.read_mat33(work, slot, place + ROTATION),
                        memory.read_vec3(work, slot, place + OFFSET),
                        f,
                    )
                    j = tree[0].parent[j]
                    couple_freedoms(tree, params, row, work, slot, i, j, dof, f)

    @wp.func(inline=False)
    def factorize_mass(tree: Trees, work: floats, slot: int):
        """Turn the matrix H in place into L with H = L^T L; what does not couple along the tree stays zero."""
        n = tree[0].freedoms
        for reverse in range(n):
            k = n - 1 - reverse
            at = tree[0].matrix + k * n
            pivot = wp.sqrt(work[slot, at + k])
            work[slot, at + k] = pivot
            i = tree[0].dof_parent[k]
            while i >= 0:
                work[slot, at + i] = work[slot, at + i] / pivot
                i = tree[0].dof_parent[i]
            i = tree[0].dof_parent[k]
            while i >= 0:
                factor = work[slot, at + i]
                j = int(i)
                while j >= 0:
                    place = tree[0].matrix + i * n + j
                    work[slot, place] = work[slot, place] - factor * work[slot, at + j]
                    j = tree[0].dof_parent[j]
                i = tree[0].dof_parent[i]

    @wp.func(inline=False)
    def solve_mass(tree: Trees, work: floats, slot: int, x_at: int):
        """Replace x by the solution of L^T L y = x."""
        n = tree[0].freedoms
        for reverse in range(n):
            i = n - 1 - reverse
            at = tree[0].matrix + i * n
            value = work[slot, x_at + i] / work[slot, at + i]
            work[slot, x_at + i] = value
            j = tree[0].dof_parent[i]
            while j >= 0:
                work[slot, x_at + j] = work[slot, x_at + j] - work[slot, at + j] * value
                j = tree[0].dof_parent[j]
        for i in range(n):
            at = tree[0].matrix + i * n
            value = work[slot, x_at + i]
            j = tree[0].dof_parent[i]
            while j >= 0:
                value = value - work[slot, at + j] * work[slot, x_at + j]
                j = tree[0].dof_parent[j]
            work[slot, x_at + i] = value / work[slot, at + i]

    return SimpleNamespace(make=make_mass, factorize=factorize_mass, solve=solve_mass)
