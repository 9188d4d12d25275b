"""From features to commands: policies and differentiable control."""

if __name__ != "gradpath.planners":
    raise ImportError(
        "import this area as gradpath.planners; a second copy would register every kernel twice"
    )

from gradpath.planners.flight import AttitudeController, FlyTowards, HoldVelocity
from gradpath.planners.policy import Idle, Policy

__all__ = ["AttitudeController", "FlyTowards", "HoldVelocity", "Idle", "Policy"]
