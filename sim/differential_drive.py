"""A robot on two driven wheels side by side."""

from typing import Any

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.sim.plane_vehicle import PlaneVehicle
from gradpath.sim.vehicle import Value, Vehicle, specs

_STATE = {"position": Value("B 2"), "yaw": Value("B"), "wheels": Value("B 2")}
_PARAMETERS = {
    "radius": Value("B", above=0),
    "track": Value("B", above=0),
    "motor_lag": Value("B", above=0),
    "max_wheel_speed": Value("B", above=0),
}
_DIFFERENTIAL_DRIVE = Vehicle("differential_drive", _STATE, 2, _PARAMETERS)


def _samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    control = 3 * random(3, 2)
    control[0, 1] = torch.tensor([20.0, -20.0], dtype=torch.float64)  # beyond the limits
    control[1:2, 0] = 2.0  # both wheels alike
    state = torch.cat([random(3), 3 * random(2)], -1)
    state[1:2, 3:] = 2.0
    typical = torch.tensor([0.1, 0.4, 0.2, 9.0], dtype=torch.float64)
    params = typical * (1 + 0.1 * random(4))
    return {"state": state, "control": control.flatten(1), "params": params, "time": 0.1}


_DIFFERENTIAL_DRIVE.register(_samples)


class DifferentialDrive(PlaneVehicle):
    """Robots on two wheels that roll without slip, one per world: state and wheel speeds in, state after one step out.

    Motors follow the commanded wheel speeds as exact first-order responses. A substep drives an exact arc of the mean
    wheel speeds, of second order; with wheel speeds that stay it is exact.

    Inputs: `state`: `position` of the middle between the wheels [m] (B, 2), `yaw` [rad] (B,), `wheels`, the speeds of
    the left and the right wheel [rad/s] (B, 2); `control`: commanded wheel speeds [rad/s] (B, 2); optional `parameters`
    that replace the stage's own for one call, per world.
    Outputs: `state`, and `pose` (B, 7), that of the middle between the wheels in the plane z = 0.

    Args:
        dt: Duration of a step [s].
        substeps: Integration steps in it.
        radius: Of the wheels [m].
        track: Distance between the wheels [m].
        motor_lag: Time constant of the motors [s].
        max_wheel_speed: Largest wheel speed that a command can ask for [rad/s].
        learnable: Makes the four values above `nn.Parameter`s; otherwise they are buffers.

    Each value is a number, or a tensor (B,).

    Raises:
        InputError: a value that is not positive and finite; when called, a state or command that is not finite.
        ShapeError: when called, a tensor of another shape or dtype.
    Gradients: exact in all but dt. Beyond a limit the gradient is zero, and the limit then has it.
    """

    contract = Contract(
        inputs={"state": specs(_STATE), "control": "B 2", "parameters": specs(_PARAMETERS)},
        outputs={"state": specs(_STATE), "pose": "B 7"},
    )
    vehicle = _DIFFERENTIAL_DRIVE

    def __init__(
        self,
        dt: float,
        substeps: int = 1,
        *,
        radius: float | Tensor = 0.08,
        track: float | Tensor = 0.4,
        motor_lag: float | Tensor = 0.1,
        max_wheel_speed: float | Tensor = 20.0,
        learnable: bool = False,
    ):
        super().__init__(dt, substeps, (radius, track, motor_lag, max_wheel_speed), learnable)
