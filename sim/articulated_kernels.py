"""The kernels of articulated models, compiled together: one module for each float type."""

import functools
from types import SimpleNamespace
from typing import Any

import warp as wp

from gradpath.sim.dynamics_kernels import build_dynamics, build_kinematics
from gradpath.sim.step_kernels import build_joint_forces, build_motion


@functools.cache
def _kernels(scalar: Any) -> SimpleNamespace:
    # In one module they share their functions, and the compiler reads Warp's headers once instead of eleven times.
    module = wp.get_module(f"gradpath_articulated_{scalar.__name__}")
    module.options["enable_backward"] = False
    builders = build_kinematics, build_dynamics, build_joint_forces, build_motion
    parts = [build(scalar, module) for build in builders]
    return SimpleNamespace(**{name: kernel for part in parts for name, kernel in vars(part).items()})


def _kernel(scalar: Any, name: str) -> wp.Kernel:
    kernel: wp.Kernel = getattr(_kernels(scalar), name)
    return kernel


make_locate = functools.partial(_kernel, name="locate")
make_locate_adjoint = functools.partial(_kernel, name="locate_adjoint")
make_inverse = functools.partial(_kernel, name="inverse")
make_inverse_adjoint = functools.partial(_kernel, name="inverse_adjoint")
make_forward = functools.partial(_kernel, name="forward")
make_forward_adjoint = functools.partial(_kernel, name="forward_adjoint")
make_mass = functools.partial(_kernel, name="mass")
make_joint_forces = functools.partial(_kernel, name="joint_forces")
make_joint_forces_adjoint = functools.partial(_kernel, name="joint_forces_adjoint")
make_move = functools.partial(_kernel, name="move")
make_move_adjoint = functools.partial(_kernel, name="move_adjoint")
