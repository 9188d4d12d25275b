"""Newton in `bench_sim.py`: all steps and the tape's adjoint captured as graphs, on the CPU.

Robots run in the Featherstone solver, the quadrotor in the semi-implicit one. There is no float64.
"""

from pathlib import Path
from typing import Any

import newton
import numpy as np
import warp as wp
from _sim_measure import weights
from _sim_mujoco import load
from _sim_systems import INERTIA, MASS, System


@wp.kernel
def _push_body(
    control: wp.array2d(dtype=float),
    pose: wp.array(dtype=wp.transform),
    force: wp.array(dtype=wp.spatial_vector),
):
    world = wp.tid()
    turn = wp.transform_get_rotation(pose[world])
    up = wp.quat_rotate(turn, wp.vec3(0.0, 0.0, control[world, 0]))
    torque = wp.quat_rotate(turn, wp.vec3(control[world, 1], control[world, 2], control[world, 3]))
    force[world] = wp.spatial_vector(up, torque)


@wp.kernel
def _push_joints(
    control: wp.array2d(dtype=float), gear: wp.array(dtype=float), dof: wp.array(dtype=int), dofs: int,
    force: wp.array(dtype=float),
):  # fmt: skip
    world, actuator = wp.tid()
    force[world * dofs + dof[actuator]] = gear[actuator] * control[world, actuator]


@wp.kernel
def _weigh_body(
    pose: wp.array(dtype=wp.transform), twist: wp.array(dtype=wp.spatial_vector), weight: wp.array(dtype=float),
    loss: wp.array(dtype=float), total: wp.array(dtype=float),
):  # fmt: skip
    world = wp.tid()
    value = wp.float32(0.0)
    for k in range(7):
        value += weight[k] * pose[world][k]
    for k in range(6):
        value += weight[7 + k] * twist[world][k]
    loss[world] = value
    wp.atomic_add(total, 0, value)


@wp.kernel
def _weigh_joints(
    q: wp.array(dtype=float), qd: wp.array(dtype=float), weight: wp.array(dtype=float), coordinates: int, dofs: int,
    loss: wp.array(dtype=float), total: wp.array(dtype=float),
):  # fmt: skip
    world = wp.tid()
    value = wp.float32(0.0)
    for k in range(coordinates):
        value += weight[k] * q[world * coordinates + k]
    for k in range(dofs):
        value += weight[coordinates + k] * qd[world * dofs + k]
    loss[world] = value
    wp.atomic_add(total, 0, value)


class Newton:
    """One state per step, as its differentiable examples have it."""

    differentiable = True
    spacing = 0.5  # float32: near enough, since the loss is nearly quadratic over so short a time

    def __init__(self, system: System, file: Path, worlds: int, steps: int):
        self.system, self.worlds, self.steps = system, worlds, steps
        self.flying = system.name == "quadrotor"
        single = newton.ModelBuilder()
        if self.flying:
            single.add_body(mass=MASS, inertia=wp.mat33(np.diag(INERTIA)), lock_inertia=True)
        else:
            single.add_mjcf(str(file), ctrl_direct=True)
        builder = newton.ModelBuilder()
        builder.replicate(single, worlds)
        self.model = builder.finalize(device="cpu", requires_grad=True)
        if self.flying:
            self.solver: Any = newton.solvers.SolverSemiImplicit(self.model, angular_damping=0.0)
        else:
            self.solver = newton.solvers.SolverFeatherstone(self.model, angular_damping=0.0)
            host = load(system, file)
            joints = host.actuator_trnid[:, 0]
            self.dof = wp.array(host.jnt_dofadr[joints], dtype=int)
            self.gear = wp.array(host.actuator_gear[:, 0], dtype=float)
        self.states = [self.model.state() for _ in range(steps + 1)]
        self.control = [self.model.control() for _ in range(steps)]
        self.loss, self.total = wp.zeros(worlds, requires_grad=True), wp.zeros(1, requires_grad=True)
        count = 13 if self.flying else single.joint_coord_count + single.joint_dof_count
        self.sizes = single.joint_coord_count, single.joint_dof_count
        self.weight = wp.array(weights(count), dtype=float)
        self.commands = [
            wp.zeros((worlds, len(system.mean)), dtype=float, requires_grad=True) for _ in range(steps)
        ]
        self.contacts = None
        if system.contact:
            self.collision = newton.CollisionPipeline(self.model, requires_grad=True)
            self.contacts = self.collision.contacts()
        newton.eval_fk(self.model, self.states[0].joint_q, self.states[0].joint_qd, self.states[0])
        self._run()
        with wp.ScopedCapture(device="cpu") as capture:
            self._run()
        self.forward_graph = capture.graph
        self.tape = wp.Tape()
        with self.tape:
            self._run()
        self.tape.backward(self.total)
        with wp.ScopedCapture(device="cpu") as capture:
            self.tape.zero()
            tape = wp.Tape()
            with tape:
                self._run()
            tape.backward(self.total)
        self.graph = capture.graph

    def _run(self) -> None:
        self.total.zero_()
        for t in range(self.steps):
            state = self.states[t]
            state.clear_forces()
            if self.flying:
                wp.launch(_push_body, self.worlds, [self.commands[t], state.body_q], [state.body_f])
            else:
                inputs = [self.commands[t], self.gear, self.dof, self.sizes[1]]
                wp.launch(
                    _push_joints, (self.worlds, len(self.system.mean)), inputs, [self.control[t].joint_f]
                )
            if self.contacts is not None:
                self.collision.collide(state, self.contacts)
            self.solver.step(state, self.states[t + 1], self.control[t], self.contacts, self.system.dt)
        end = self.states[-1]
        if self.flying:
            inputs = [end.body_q, end.body_qd, self.weight]
            wp.launch(_weigh_body, self.worlds, inputs, [self.loss, self.total])
        else:
            inputs = [end.joint_q, end.joint_qd, self.weight, *self.sizes]
            wp.launch(_weigh_joints, self.worlds, inputs, [self.loss, self.total])

    def set_controls(self, controls: np.ndarray) -> None:
        """Take commands."""
        for t, command in enumerate(self.commands):
            command.assign(controls[:, t].astype(np.float32))

    def forward(self) -> None:
        """Run all steps."""
        wp.capture_launch(self.forward_graph)

    def gradient(self) -> None:
        """Run all steps and back."""
        wp.capture_launch(self.graph)

    def losses(self) -> np.ndarray:
        """The loss of each world."""
        return self.loss.numpy()

    def gradients(self) -> np.ndarray:
        """With respect to the commands."""
        return np.stack([command.grad.numpy() for command in self.commands], 1)


def build(system: System, file: Path, worlds: int, steps: int, precise: bool) -> Newton:
    """Every system."""
    return Newton(system, file, worlds, steps)
