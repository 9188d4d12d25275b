"""From features to commands: policies and differentiable control."""

if __name__ != "gradpath.planners":
    raise ImportError(
        "import this area as gradpath.planners; a second copy would register every kernel twice"
    )

from gradpath.planners.dynamics import StageDynamics
from gradpath.planners.flight import AttitudeController, FlyTowards, HoldVelocity
from gradpath.planners.ilqr import Plan, ilqr
from gradpath.planners.lqr import LqrSolution, lqr
from gradpath.planners.mpc import MPC
from gradpath.planners.policy import Idle, Policy

__all__ = [
    "MPC",
    "AttitudeController",
    "FlyTowards",
    "HoldVelocity",
    "Idle",
    "LqrSolution",
    "Plan",
    "Policy",
    "StageDynamics",
    "ilqr",
    "lqr",
]
