"""Kernels of kinematics and dynamics, each one world per thread; their adjoints are written by hand."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.kinematics_functions import ORIENTATION, POSITION, make_kinematics
from gradpath.sim.mass_functions import make_mass_matrix
from gradpath.sim.spatial import make_memory
from gradpath.sim.tree import Trees
from gradpath.sim.tree_adjoints import make_adjoints
from gradpath.sim.tree_functions import (
    ARMATURE,
    DOF,
    SCRATCH,
    TWIST,
    make_recursions,
)


@functools.cache
def build_rows(scalar):
    """Return the functions that copy between arrays and scratch."""
    floats = wp.array2d(dtype=scalar)

    @wp.func
    def load_row(source: floats, world: int, work: floats, slot: int, at: int, count: int):
        for k in range(count):
            work[slot, at + k] = source[world, k]

    @wp.func
    def store_row(work: floats, slot: int, at: int, target: floats, world: int, count: int):
        for k in range(count):
            target[world, k] = work[slot, at + k]

    @wp.func
    def copy_row(work: floats, slot: int, source: int, target: int, count: int):
        for k in range(count):
            work[slot, target + k] = work[slot, source + k]

    @wp.func
    def scratch_slot(tree: Trees, first: int, world: int):
        """On the CPU the worlds of a launch run one after the other and share the scratch of the first."""
        if tree[0].sequential == 1:
            return first
        return world

    return SimpleNamespace(load=load_row, store=store_row, copy=copy_row, slot=scratch_slot)


def build_kinematics(scalar, module):
    """Return the kernels of poses and twists, and of their gradients."""
    floats = wp.array2d(dtype=scalar)
    rows, memory, recursions, kinematics = (
        build_rows(scalar), make_memory(scalar), make_recursions(scalar), make_kinematics(scalar),
    )  # fmt: skip

    @wp.kernel(module=module, enable_backward=False)
    def _locate_bodies(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv), or without columns
        # Out:
        work: floats,  # (B, scratch)
        pose: floats,  # (B, N * 7)
        twist: floats,  # (B, N * 6) linear, angular in world axes; without columns where qd is
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        moving = 0
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        if twist.shape[1] > 0:
            moving = 1
            rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        kinematics.locate(tree, params, row, work, slot, tree[0].q, tree[0].qd, moving)
        for i in range(tree[0].bodies):
            orientation = memory.read_quat(work, slot, i * SCRATCH + ORIENTATION)
            memory.write_vec3(pose, world, 7 * i, memory.read_vec3(work, slot, i * SCRATCH + POSITION))
            memory.write_quat(pose, world, 7 * i + 3, orientation)
            if moving == 1:
                linear = memory.read_vec3(work, slot, i * SCRATCH + TWIST)
                angular = memory.read_vec3(work, slot, i * SCRATCH + TWIST + 3)
                memory.write_vec3(twist, world, 6 * i, wp.quat_rotate(orientation, linear))
                memory.write_vec3(twist, world, 6 * i + 3, wp.quat_rotate(orientation, angular))

    @wp.kernel(module=module, enable_backward=False)
    def _locate_bodies_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv), or without columns
        grad_pose: floats,  # (B, N * 7)
        grad_twist: floats,  # (B, N * 6), or without columns
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, P), or without rows
        grad_q: floats,  # (B, nq)
        grad_qd: floats,  # (B, nv), or without columns
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        moving = 0
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        if grad_twist.shape[1] > 0:
            moving = 1
            rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        kinematics.locate(tree, params, row, work, slot, tree[0].q, tree[0].qd, moving)
        memory.clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_qd, tree[0].freedoms)
        kinematics.locate_adjoint(
            tree, params, row, work, slot, tree[0].q, tree[0].qd, tree[0].grad_q, tree[0].grad_qd, grad_pose,
            grad_twist, grad_params, world,
        )  # fmt: skip
        rows.store(work, slot, tree[0].grad_q, grad_q, world, tree[0].coordinates)
        if moving == 1:
            rows.store(work, slot, tree[0].grad_qd, grad_qd, world, tree[0].freedoms)

    return SimpleNamespace(locate=_locate_bodies, locate_adjoint=_locate_bodies_adjoint)


def build_dynamics(scalar, module):
    """Return the kernels of inverse and forward dynamics, of their gradients, and of the mass matrix."""
    floats = wp.array2d(dtype=scalar)
    rows, memory, recursions = build_rows(scalar), make_memory(scalar), make_recursions(scalar)
    adjoints, mass = make_adjoints(scalar), make_mass_matrix(scalar)

    @wp.func
    def armature_gradient(
        tree: Trees, work: floats, slot: int, seed_at: int, a_at: int, grad_params: floats, world: int
    ):
        if grad_params.shape[0] > 0:
            for dof in range(tree[0].freedoms):
                at = tree[0].joint_parameters + dof * DOF + ARMATURE
                value = work[slot, seed_at + dof] * work[slot, a_at + dof]
                grad_params[world, at] = grad_params[world, at] + value

    @wp.kernel(module=module, enable_backward=False)
    def _find_joint_forces(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv)
        qdd: floats,  # (B, nv)
        wrench: floats,  # (B, N * 6), or without columns
        # Out:
        work: floats,  # (B, scratch)
        tau: floats,  # (B, nv)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        rows.load(qdd, world, work, slot, tree[0].qdd, tree[0].freedoms)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        recursions.load(tree, work, slot, wrench, world, 0)
        recursions.newton_euler(tree, params, row, work, slot, tree[0].qd, tree[0].qdd, tree[0].tau)
        recursions.add_armature(tree, params, row, work, slot, tree[0].qdd, tree[0].tau)
        rows.store(work, slot, tree[0].tau, tau, world, tree[0].freedoms)

    @wp.kernel(module=module, enable_backward=False)
    def _find_joint_forces_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv)
        qdd: floats,  # (B, nv)
        wrench: floats,  # (B, N * 6), or without columns
        grad_tau: floats,  # (B, nv)
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, P), or without rows
        grad_q: floats,  # (B, nq)
        grad_qd: floats,  # (B, nv)
        grad_qdd: floats,  # (B, nv)
        grad_wrench: floats,  # (B, N * 6), or without columns
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        rows.load(qdd, world, work, slot, tree[0].qdd, tree[0].freedoms)
        rows.load(grad_tau, world, work, slot, tree[0].seed, tree[0].freedoms)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        recursions.load(tree, work, slot, wrench, world, 0)
        recursions.newton_euler(tree, params, row, work, slot, tree[0].qd, tree[0].qdd, tree[0].tau)
        memory.clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_qd, tree[0].freedoms)
        memory.clear_row(work, slot, tree[0].grad_qdd, tree[0].freedoms)
        recursions.add_armature(tree, params, row, work, slot, tree[0].seed, tree[0].grad_qdd)
        loaded = wp.min(wrench.shape[1], 1)
        adjoints.newton_euler(
            tree, params, row, work, slot, tree[0].q, tree[0].qd, tree[0].qdd, tree[0].seed, tree[0].grad_q,
            tree[0].grad_qd,
            tree[0].grad_qdd, grad_params, grad_wrench, world, loaded, 0,
        )  # fmt: skip
        armature_gradient(tree, work, slot, tree[0].seed, tree[0].qdd, grad_params, world)
        rows.store(work, slot, tree[0].grad_q, grad_q, world, tree[0].coordinates)
        rows.store(work, slot, tree[0].grad_qd, grad_qd, world, tree[0].freedoms)
        rows.store(work, slot, tree[0].grad_qdd, grad_qdd, world, tree[0].freedoms)

    @wp.kernel(module=module, enable_backward=False)
    def _accelerate_joints(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv)
        tau: floats,  # (B, nv)
        wrench: floats,  # (B, N * 6), or without columns
        # Out:
        work: floats,  # (B, scratch)
        qdd: floats,  # (B, nv)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        recursions.load(tree, work, slot, wrench, world, 0)
        recursions.newton_euler(tree, params, row, work, slot, tree[0].qd, -1, tree[0].tau)
        mass.make(tree, params, row, work, slot, scalar(0.0))
        mass.factorize(tree, work, slot)
        for dof in range(tree[0].freedoms):
            work[slot, tree[0].qdd + dof] = tau[world, dof] - work[slot, tree[0].tau + dof]
        mass.solve(tree, work, slot, tree[0].qdd)
        rows.store(work, slot, tree[0].qdd, qdd, world, tree[0].freedoms)

    @wp.kernel(module=module, enable_backward=False)
    def _accelerate_joints_adjoint(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        qd: floats,  # (B, nv)
        wrench: floats,  # (B, N * 6), or without columns
        qdd: floats,  # (B, nv)
        grad_qdd: floats,  # (B, nv)
        # Out:
        work: floats,  # (B, scratch)
        grad_params: floats,  # (B, P), or without rows
        grad_q: floats,  # (B, nq)
        grad_qd: floats,  # (B, nv)
        grad_tau: floats,  # (B, nv)
        grad_wrench: floats,  # (B, N * 6), or without columns
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        rows.load(qd, world, work, slot, tree[0].qd, tree[0].freedoms)
        rows.load(qdd, world, work, slot, tree[0].qdd, tree[0].freedoms)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        recursions.load(tree, work, slot, wrench, world, 0)
        mass.make(tree, params, row, work, slot, scalar(0.0))
        mass.factorize(tree, work, slot)
        rows.load(grad_qdd, world, work, slot, tree[0].seed, tree[0].freedoms)
        mass.solve(tree, work, slot, tree[0].seed)
        rows.store(work, slot, tree[0].seed, grad_tau, world, tree[0].freedoms)
        # The rest is inverse dynamics at this acceleration, backwards, seeded with minus what was solved for.
        for dof in range(tree[0].freedoms):
            work[slot, tree[0].seed + dof] = -work[slot, tree[0].seed + dof]
        recursions.newton_euler(tree, params, row, work, slot, tree[0].qd, tree[0].qdd, tree[0].tau)
        memory.clear_row(work, slot, tree[0].grad_q, tree[0].coordinates)
        memory.clear_row(work, slot, tree[0].grad_qd, tree[0].freedoms)
        loaded = wp.min(wrench.shape[1], 1)
        adjoints.newton_euler(
            tree, params, row, work, slot, tree[0].q, tree[0].qd, tree[0].qdd, tree[0].seed, tree[0].grad_q,
            tree[0].grad_qd, -1,
            grad_params, grad_wrench, world, loaded, 0,
        )  # fmt: skip
        armature_gradient(tree, work, slot, tree[0].seed, tree[0].qdd, grad_params, world)
        rows.store(work, slot, tree[0].grad_q, grad_q, world, tree[0].coordinates)
        rows.store(work, slot, tree[0].grad_qd, grad_qd, world, tree[0].freedoms)

    @wp.kernel(module=module, enable_backward=False)
    def _make_mass_matrix(
        first: int,
        # Model:
        tree: Trees,
        params: floats,  # (W, P)
        # In:
        q: floats,  # (B, nq)
        # Out:
        work: floats,  # (B, scratch)
        matrix: floats,  # (B, nv * nv)
    ):
        world = first + wp.tid()
        slot, row = rows.slot(tree, first, world), world % params.shape[0]
        rows.load(q, world, work, slot, tree[0].q, tree[0].coordinates)
        recursions.place(tree, params, row, work, slot, tree[0].q)
        mass.make(tree, params, row, work, slot, scalar(0.0))
        n = tree[0].freedoms
        for i in range(n):
            for j in range(n):
                matrix[world, i * n + j] = work[slot, tree[0].matrix + wp.max(i, j) * n + wp.min(i, j)]

    return SimpleNamespace(
        inverse=_find_joint_forces,
        inverse_adjoint=_find_joint_forces_adjoint,
        forward=_accelerate_joints,
        forward_adjoint=_accelerate_joints_adjoint,
        mass=_make_mass_matrix,
    )
