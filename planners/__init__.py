"""From features to commands: policies and differentiable control."""

if __name__ != "gradpath.planners":
    raise ImportError(
        "import this area as gradpath.planners; a second copy would register every kernel twice"
    )

from gradpath.planners.clearances import ToField, ToMesh, ToPoints, ToShapes
from gradpath.planners.costs import Collision, Costs, Effort, Goal, Limit
from gradpath.planners.curves import Curve, bezier, bspline, minimum_snap
from gradpath.planners.dynamics import StageDynamics
from gradpath.planners.flatness import flat_state
from gradpath.planners.flight import AttitudeController, FlyTowards, HoldVelocity
from gradpath.planners.ilqr import Plan, ilqr
from gradpath.planners.lqr import LqrSolution, lqr
from gradpath.planners.mpc import MPC
from gradpath.planners.policy import Idle, Policy
from gradpath.planners.times import optimal_times, trapezoidal_times

__all__ = [
    "MPC",
    "AttitudeController",
    "Collision",
    "Costs",
    "Curve",
    "Effort",
    "FlyTowards",
    "Goal",
    "HoldVelocity",
    "Idle",
    "Limit",
    "LqrSolution",
    "Plan",
    "Policy",
    "StageDynamics",
    "ToField",
    "ToMesh",
    "ToPoints",
    "ToShapes",
    "bezier",
    "bspline",
    "flat_state",
    "ilqr",
    "lqr",
    "minimum_snap",
    "optimal_times",
    "trapezoidal_times",
]
