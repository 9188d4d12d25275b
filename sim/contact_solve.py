"""Velocities that satisfy the laws of all contacts of a world at once, and the adjoint of that.

With the inertia A, the velocities v* that other forces lead to and the Jacobian J of the contacts, they are the root of

    A (v - v*) = J^T p(J v),

found by Newton's method with a line search; elimination skips what is zero, so that its cost goes with what couples.
The adjoint is that of the equation at its root: one solution with the same matrix, transposed.

References: Castro et al. 2022, An unconstrained convex formulation of compliant contact; Todorov 2014, Convex and
analytically-invertible dynamics with contacts and constraints.
"""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import functools
from types import SimpleNamespace

import warp as wp

from gradpath.sim.contact_law import make_contact_law
from gradpath.sim.contact_rows import (
    CHANGE,
    CONTACT,
    DEPTH,
    END,
    ENTRIES,
    HEAD,
    IMPULSE,
    LAW,
    NORMAL,
    NUMBER,
    START,
    WEIGHT,
    Touches,
    make_contact_rows,
)
from gradpath.sim.spatial import make_memory
from gradpath.sim.tree import Trees

_ITERATIONS = 40
_SEARCHES = 20  # a loop that is not unrolled


@functools.cache
def make_elimination(scalar):
    """Return the functions that eliminate and solve with the matrix in scratch, as attributes."""
    floats = wp.array2d(dtype=scalar)

    @wp.func(inline=False)
    def eliminate(work: floats, slot: int, matrix: int, n: int):
        """Turn a matrix into U L in place, from the last row up: U has ones on its diagonal."""
        for reverse in range(n):
            k = n - 1 - reverse
            row = matrix + k * n
            low = int(0)
            while low < k and work[slot, row + low] == scalar(0.0):
                low += 1
            pivot = scalar(1.0) / work[slot, row + k]
            for i in range(low, k):
                factor = work[slot, matrix + i * n + k] * pivot
                if factor != scalar(0.0):
                    work[slot, matrix + i * n + k] = factor
                    for j in range(low, k):
                        at = matrix + i * n + j
                        work[slot, at] = work[slot, at] - factor * work[slot, row + j]

    @wp.func(inline=False)
    def solve_eliminated(work: floats, slot: int, matrix: int, n: int, x: int):
        for reverse in range(n):
            k = n - 1 - reverse
            value = work[slot, x + k]
            for i in range(k):
                work[slot, x + i] = work[slot, x + i] - work[slot, matrix + i * n + k] * value
        for k in range(n):
            value = work[slot, x + k]
            for j in range(k):
                value = value - work[slot, matrix + k * n + j] * work[slot, x + j]
            work[slot, x + k] = value / work[slot, matrix + k * n + k]

    @wp.func(inline=False)
    def solve_transposed(work: floats, slot: int, matrix: int, n: int, x: int):
        for reverse in range(n):
            k = n - 1 - reverse
            value = work[slot, x + k] / work[slot, matrix + k * n + k]
            work[slot, x + k] = value
            for j in range(k):
                work[slot, x + j] = work[slot, x + j] - work[slot, matrix + k * n + j] * value
        for k in range(n):
            value = work[slot, x + k]
            for i in range(k):
                value = value - work[slot, matrix + i * n + k] * work[slot, x + i]
            work[slot, x + k] = value

    return SimpleNamespace(eliminate=eliminate, solve=solve_eliminated, solve_transposed=solve_transposed)


@functools.cache
def make_contact_solve(scalar):
    """Return the functions that solve for the velocities in contact, as attributes."""
    vec3, mat33 = wp.types.vector(3, scalar), wp.types.matrix((3, 3), scalar)
    floats = wp.array2d(dtype=scalar)
    memory, law = make_memory(scalar), make_contact_law(scalar)
    rows, elimination = make_contact_rows(scalar), make_elimination(scalar)
    # Steps below this share of the speed are the last: Newton's method squares it. Relative, and squared.
    small = 1e-18 if scalar == wp.float64 else 1e-9

    @wp.func(inline=False)
    def inertia_times(tree: Trees, touch: Touches, work: floats, slot: int, x: int, out: int):
        """Write A x, along the couplings of the tree."""
        n = tree[0].freedoms
        for i in range(n):
            row = touch[0].inertia + i * n
            value = work[slot, row + i] * work[slot, x + i]
            j = tree[0].dof_parent[i]
            while j >= 0:
                value += work[slot, row + j] * work[slot, x + j]
                work[slot, out + j] = work[slot, out + j] + work[slot, row + j] * work[slot, x + i]
                j = tree[0].dof_parent[j]
            work[slot, out + i] = value

    @wp.func
    def inner(work: floats, slot: int, n: int, x: int, y: int):
        total = scalar(0.0)
        for i in range(n):
            total += work[slot, x + i] * work[slot, y + i]
        return total

    @wp.func
    def press_at(
        contacts: floats, world: int, source: int, start: vec3, end: vec3, width: scalar, time: scalar
    ):
        """Normal impulse of a contact, its derivatives as `press_law` has them, all times weight and stiffness."""
        normal = memory.read_vec3(contacts, world, source + NORMAL)
        pressed = law.press(
            contacts[world, source + DEPTH], wp.dot(normal, start), wp.dot(normal, end),
            contacts[world, source + LAW + 1], width, time,
        )  # fmt: skip
        return contacts[world, source + WEIGHT] * contacts[world, source + LAW] * pressed

    @wp.func(inline=False)
    def add_resistance(touch: Touches, work: floats, slot: int, at: int, n: int, resistance: mat33):
        """Add J^T G J of a felt contact to the matrix."""
        count = int(work[slot, at + ENTRIES])
        for e in range(count):
            entry = at + HEAD + 4 * e
            row = touch[0].matrix + int(work[slot, entry]) * n
            left = memory.read_vec3(work, slot, entry + 1) * resistance
            for f in range(count):
                other = at + HEAD + 4 * f
                place = row + int(work[slot, other])
                work[slot, place] = work[slot, place] + wp.dot(left, memory.read_vec3(work, slot, other + 1))

    @wp.func(inline=False)
    def assemble(
        tree: Trees, touch: Touches, work: floats, slot: int, contacts: floats, world: int, count: int,
        width: scalar, time: scalar, scale: scalar, coupling: scalar,
    ):  # fmt: skip
        """Write A + J^T G J, and take the impulses from what `rest` holds; keep velocities and impulses."""
        n = tree[0].freedoms
        for i in range(n * n):
            work[slot, touch[0].matrix + i] = scalar(0.0)
        for i in range(n):
            j = int(i)
            while j >= 0:
                value = work[slot, touch[0].inertia + i * n + j]
                work[slot, touch[0].matrix + i * n + j] = value
                work[slot, touch[0].matrix + j * n + i] = value
                j = tree[0].dof_parent[j]
        for s in range(count):
            at = touch[0].slots + touch[0].slot * s
            source = CONTACT * int(work[slot, at + NUMBER])
            end = rows.times(work, slot, at, touch[0].end)
            normal = memory.read_vec3(contacts, world, source + NORMAL)
            friction = contacts[world, source + LAW + 2]
            pressed = press_at(
                contacts, world, source, memory.read_vec3(work, slot, at + START), end, width, time
            )
            impulse = law.impulse(normal, end, pressed[0], friction, scale)
            memory.write_vec3(work, slot, at + END, end)
            memory.write_vec3(work, slot, at + IMPULSE, impulse)
            rows.add(work, slot, at, -impulse, touch[0].rest)
            resistance = law.resistance(normal, end, pressed[0], pressed[1], friction, scale, coupling)
            add_resistance(touch, work, slot, at, n, resistance)

    @wp.func
    def slope_at(
        touch: Touches, work: floats, slot: int, contacts: floats, world: int, count: int,
        width: scalar, time: scalar, scale: scalar, share: scalar, linear: scalar, square: scalar,
    ):  # fmt: skip
        """The residual along the change, after a share of it."""
        total = linear + share * square
        for s in range(count):
            at = touch[0].slots + touch[0].slot * s
            source = CONTACT * int(work[slot, at + NUMBER])
            change = memory.read_vec3(work, slot, at + CHANGE)
            end = memory.read_vec3(work, slot, at + END) + share * change
            pressed = press_at(
                contacts, world, source, memory.read_vec3(work, slot, at + START), end, width, time
            )
            normal = memory.read_vec3(contacts, world, source + NORMAL)
            friction = contacts[world, source + LAW + 2]
            total -= wp.dot(law.impulse(normal, end, pressed[0], friction, scale), change)
        return total

    @wp.func(inline=False)
    def search(
        touch: Touches, work: floats, slot: int, contacts: floats, world: int, count: int,
        width: scalar, time: scalar, scale: scalar, linear: scalar, square: scalar, slope: scalar,
    ):  # fmt: skip
        """The share of the change at which the residual along it vanishes, about; one where it does not overshoot."""
        low = scalar(0.0)
        high = scalar(1.0)
        at_low = scalar(slope)
        at_high = slope_at(
            touch, work, slot, contacts, world, count, width, time, scale, high, linear, square
        )
        share = scalar(high)
        found = scalar(at_high)
        for _s in range(wp.static(_SEARCHES)):
            if found > scalar(-0.25) * slope or (share < scalar(1.0) and found < scalar(0.25) * slope):
                # Regula falsi, halving the weight of the end that stays, within the middle of the interval.
                share = (low * at_high - high * at_low) / (at_high - at_low)
                share = wp.clamp(share, low + scalar(0.1) * (high - low), high - scalar(0.1) * (high - low))
                found = slope_at(
                    touch, work, slot, contacts, world, count, width, time, scale, share, linear, square
                )
                if found > scalar(0.0):
                    high, at_high, at_low = share, found, scalar(0.5) * at_low
                else:
                    low, at_low, at_high = share, found, scalar(0.5) * at_high
        return share

    @wp.func(inline=False)
    def solve_contacts(
        tree: Trees, touch: Touches, work: floats, slot: int, contacts: floats, world: int, count: int,
        width: scalar, time: scalar, scale: scalar,
    ):  # fmt: skip
        """Write the velocities at the end, from those at the start and those without contact."""
        n = tree[0].freedoms
        if count == 0:
            for i in range(n):
                work[slot, touch[0].end + i] = work[slot, touch[0].free + i]
            return
        inertia_times(tree, touch, work, slot, touch[0].free, touch[0].product)
        moving = inner(work, slot, n, touch[0].free, touch[0].product)
        for i in range(n):
            work[slot, touch[0].end + i] = work[slot, touch[0].start + i]
        coupling = scalar(1.0)
        for _k in range(wp.static(_ITERATIONS)):
            for i in range(n):
                work[slot, touch[0].change + i] = work[slot, touch[0].end + i] - work[slot, touch[0].free + i]
            inertia_times(tree, touch, work, slot, touch[0].change, touch[0].rest)
            energy = moving + inner(work, slot, n, touch[0].change, touch[0].rest)
            assemble(tree, touch, work, slot, contacts, world, count, width, time, scale, coupling)
            elimination.eliminate(work, slot, touch[0].matrix, n)
            for i in range(n):
                work[slot, touch[0].change + i] = -work[slot, touch[0].rest + i]
            elimination.solve(work, slot, touch[0].matrix, n, touch[0].change)
            slope = inner(work, slot, n, touch[0].change, touch[0].rest)
            if slope > scalar(0.0):
                # Not a descent: strong coupling of friction with the normal. Without it the matrix is positive.
                if coupling == scalar(0.0):
                    return
                coupling = scalar(0.0)
            else:
                coupling = scalar(1.0)
                linear = scalar(slope)
                for s in range(count):
                    at = touch[0].slots + touch[0].slot * s
                    change = rows.times(work, slot, at, touch[0].change)
                    memory.write_vec3(work, slot, at + CHANGE, change)
                    linear += wp.dot(memory.read_vec3(work, slot, at + IMPULSE), change)
                inertia_times(tree, touch, work, slot, touch[0].change, touch[0].product)
                square = inner(work, slot, n, touch[0].change, touch[0].product)
                share = search(
                    touch, work, slot, contacts, world, count, width, time, scale, linear, square, slope
                )
                for i in range(n):
                    at = touch[0].end + i
                    work[slot, at] = work[slot, at] + share * work[slot, touch[0].change + i]
                if share == scalar(1.0) and -slope <= scalar(small) * energy:
                    return

    return SimpleNamespace(
        solve=solve_contacts, assemble=assemble, press=press_at, inertia_times=inertia_times, inner=inner
    )
