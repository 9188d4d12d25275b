"""From features to commands: policies and differentiable control."""

if __name__ != "gradpath.planners":
    raise ImportError(
        "import this area as gradpath.planners; a second copy would register every kernel twice"
    )

from gradpath.planners.choice import RecurrentPolicy, SelectPlan
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
from gradpath.planners.sampling import Sampled, cem, mppi
from gradpath.planners.shooting import Shooting, Shot, levenberg_marquardt, shoot
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
    "RecurrentPolicy",
    "Sampled",
    "SelectPlan",
    "Shooting",
    "Shot",
    "StageDynamics",
    "ToField",
    "ToMesh",
    "ToPoints",
    "ToShapes",
    "bezier",
    "bspline",
    "cem",
    "flat_state",
    "ilqr",
    "levenberg_marquardt",
    "lqr",
    "minimum_snap",
    "mppi",
    "optimal_times",
    "shoot",
    "trapezoidal_times",
]
