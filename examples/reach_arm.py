"""The robot of the reaching task: a Panda arm from its URDF file, commanded by joint torques."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import gradpath as gp
from gradpath import geometry, sim

ROBOT = "robots/panda_description/urdf/panda.urdf"
HAND, TOOL = "panda_hand", "panda_hand_tcp"  # frames of the URDF file
FINGERS = {"panda_finger_joint1": 0.04, "panda_finger_joint2": 0.04}  # open [m]
HOME = (0.0, -0.3, 0.0, -2.0, 0.0, 1.7, 0.785)  # the hand 0.58 m above the table, looking down [rad]
LEVER = 0.15  # from the tool's point to the second point that holds the hand upright [m]
TORQUES = (30.0, 40.0, 30.0, 30.0, 8.0, 8.0, 4.0)  # largest command on top of gravity [N m]
JOINTS = len(HOME)


def robot_file() -> Path:
    """Return the URDF file, from the package example-robot-data.

    Raises:
        InputError: the package is not there.
    """
    path = Path(sysconfig.get_path("purelib")) / "cmeel.prefix/share/example-robot-data" / ROBOT
    if not path.is_file():
        raise gp.InputError(f"no robot at {path}; it comes with pip install 'gradpath[robots]'")
    return path


@functools.lru_cache(maxsize=2)
def load_arm(meshes: bool = False) -> sim.Model:
    """Return the arm with its fingers held open; without its meshes, which only drawing needs."""
    model = sim.load(robot_file(), locked=FINGERS, meshes=meshes)
    return model.replace(home=torch.tensor(HOME, dtype=torch.float64))


def upright(point: Tensor) -> Tensor:
    """The two points of a tool that looks down with its tip at a point (B, 3): (B, 6)."""
    return torch.cat([point, point + point.new_tensor([0.0, 0.0, LEVER])], -1)


class Arm(gp.Stage):
    """The arm as the maker's controller presents it: torques are commanded on top of those that hold it still.

    The state has a part that follows from the others, `tool`: where the point between the fingertips is, and a second
    point `LEVER` behind it. A planner that sees it has a cost that is quadratic in its state.

    Args:
        dt: Duration of a step [s].
        substeps: Integration steps in it.
        weightless: Leave out gravity and the torques against it, which cancel but for their change within a step:
            a model to plan with, at half the price.

    Inputs: `state` with `q` (B, 7) [rad], `qd` (B, 7) [rad/s], `tool` (B, 6) [m]; `control` (B, 7) [N m].
    Outputs: `state`; `hand` (B, 7), the pose of the hand in the world; `torque` (B, 7), that of the motors [N m].
    Gradients: exact.
    """

    STATE: ClassVar[dict[str, str]] = {"q": f"B {JOINTS}", "qd": f"B {JOINTS}", "tool": "B 6"}
    contract = gp.Contract(
        inputs={"state": STATE, "control": f"B {JOINTS}"},
        outputs={"state": STATE, "hand": "B 7", "torque": f"B {JOINTS}"},
    )

    def __init__(self, dt: float, substeps: int = 1, weightless: bool = False):
        super().__init__()
        self.dt, self.substeps, self.weightless = dt, substeps, weightless
        self.model = load_arm()
        if weightless:
            self.model = self.model.replace(gravity=torch.zeros(3, dtype=torch.float64))

    def forward(self, state: Mapping[str, Tensor], control: Tensor) -> dict[str, Any]:
        """Advance by one step."""
        q, qd = state["q"], state["qd"]
        torque = control
        if not self.weightless:
            still = torch.zeros_like(q)
            torque = control + sim.inverse_dynamics(self.model, q, still, still)
        after = sim.step(self.model, {"q": q, "qd": qd}, torque, self.dt, self.substeps)
        # A planner tries torques that a step cannot follow; kinematics refuses the angles, the planner drops the try.
        lost = ~after["q"].isfinite().all(-1, keepdim=True)
        hand, tool = self.places(torch.where(lost, q, after["q"]))
        tool = torch.where(lost, torch.nan, tool)
        return {"state": {**after, "tool": tool}, "hand": hand, "torque": torque}

    def places(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Pose of the hand (B, 7), and the two points of the tool (B, 6), from joint angles (B, 7)."""
        poses = sim.forward_kinematics(self.model, q)
        hand, tool = (
            geometry.pose_compose(poses[:, frame.body], frame.pose.to(q))
            for frame in (self.model.frame(HAND), self.model.frame(TOOL))
        )
        points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -LEVER]], dtype=q.dtype)
        return hand, geometry.pose_apply(tool[:, None], points).flatten(1)

    def jacobian(self, q: Tensor) -> Tensor:
        """Of the two points of the tool by joint angles (B, 7): (B, 6, 7), without gradient."""
        with torch.enable_grad():
            each = q.detach().repeat(6, 1).requires_grad_()
            unit = torch.eye(6, dtype=q.dtype, device=q.device).repeat_interleave(len(q), 0)
            (rows,) = torch.autograd.grad(self.places(each)[1], each, unit)
        return rows.unflatten(0, (6, len(q))).transpose(0, 1)

    @torch.no_grad()
    def angles(self, q: Tensor, point: Tensor, rounds: int = 8) -> Tensor:
        """Joint angles near q (B, 7) at which the upright tool is at a point (B, 3), by damped least squares (B, 7)."""
        goal = upright(point)
        damping = 1e-3 * torch.eye(6, dtype=q.dtype, device=q.device)
        for _ in range(rounds):
            jacobian = self.jacobian(q)
            gap = goal - self.places(q)[1]
            q = (
                q
                + (jacobian.mT @ torch.linalg.solve(jacobian @ jacobian.mT + damping, gap[..., None]))[..., 0]
            )
        return q

    def rest(self, q: Tensor) -> dict[str, Tensor]:
        """The state at rest at joint angles (B, 7)."""
        return {"q": q, "qd": torch.zeros_like(q), "tool": self.places(q)[1]}
