"""A car as the kinematic bicycle: one wheel in front that steers, one behind, and no slip at either."""

import math
from typing import Any

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.sim.plane_vehicle import PlaneVehicle
from gradpath.sim.vehicle import Value, Vehicle, specs

_STATE = {
    "position": Value("B 2"),
    "yaw": Value("B"),
    "speed": Value("B"),
    "steer": Value("B"),
}
_PARAMETERS = {
    "wheelbase": Value("B", above=0),
    "rear": Value("B", above=0, closed=True),
    "max_acceleration": Value("B", above=0),
    "max_braking": Value("B", above=0),
    "min_speed": Value("B"),
    "max_speed": Value("B"),
    "max_steer": Value("B", above=0, below=0.5 * math.pi),
    "max_steer_rate": Value("B", above=0),
}
_BICYCLE = Vehicle("bicycle", _STATE, 2, _PARAMETERS)


def _samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, dtype=torch.float64, generator=generator)

    control = 2 * random(4, 2) - 1
    control[0, 0] = torch.tensor([5.0, 5.0], dtype=torch.float64)  # beyond the limits of both
    control[1:2, :2] = torch.tensor([-9.0, -5.0], dtype=torch.float64)  # brakes until it stands
    control[2:3] = torch.tensor([9.0, 0.2], dtype=torch.float64)  # beyond the highest speed
    state = torch.cat([random(3), 0.4 + random(1), 0.3 * random(1)], -1)
    state[2:3, 3] = 2.0  # too fast at the start
    typical = torch.tensor([1.5, 0.5, 2.0, 3.0, 0.1, 1.5, 0.4, 1.0], dtype=torch.float64)
    params = typical * (1 + 0.1 * random(8))
    return {"state": state, "control": control.flatten(1), "params": params, "time": 0.1}


_BICYCLE.register(_samples)


class Bicycle(PlaneVehicle):
    """Cars, one per world: state and command in, state after one step out.

    The reference point lies `rear` ahead of the rear axle and moves at `speed`, sideways by the slip angle that the
    geometry gives it. Acceleration and rate of steering are the command; each is limited, and so are the speed and the
    steering angle that they lead to: braking ends at `min_speed`, at the right instant within a substep. A substep
    drives an exact arc of the mean steering angle, of second order; with a steering angle that stays it is exact.

    Inputs: `state`: `position` of the reference point [m] (B, 2), `yaw` [rad] (B,), `speed` [m/s] (B,), `steer`
    [rad] (B,); `control`: acceleration [m/s^2] and rate of steering [rad/s] (B, 2); optional `parameters` that replace
    the stage's own for one call, per world.
    Outputs: `state`, and `pose` (B, 7), that of the reference point in the plane z = 0.

    Args:
        dt: Duration of a step [s].
        substeps: Integration steps in it.
        wheelbase: From axle to axle [m].
        rear: From the rear axle forward to the reference point [m].
        max_acceleration: Largest acceleration [m/s^2].
        max_braking: Largest deceleration [m/s^2].
        min_speed: Lowest speed [m/s]; negative where it may reverse.
        max_speed: Highest speed [m/s].
        max_steer: Largest steering angle [rad], below pi / 2.
        max_steer_rate: Largest rate of steering [rad/s].
        learnable: Makes the eight values above `nn.Parameter`s; otherwise they are buffers.

    Each value is a number, or a tensor (B,).

    Raises:
        InputError: a value out of range; when called, a state or command that is not finite.
        ShapeError: when called, a tensor of another shape or dtype.
    Gradients: exact in all but dt. Beyond a limit the gradient is zero, and the limit then has it.
    References: Rajamani, Vehicle Dynamics and Control (2012), section 2.2.
    """

    contract = Contract(
        inputs={"state": specs(_STATE), "control": "B 2", "parameters": specs(_PARAMETERS)},
        outputs={"state": specs(_STATE), "pose": "B 7"},
    )
    vehicle = _BICYCLE

    min_speed: Tensor
    max_speed: Tensor

    def __init__(
        self,
        dt: float,
        substeps: int = 1,
        *,
        wheelbase: float | Tensor = 2.7,
        rear: float | Tensor = 0.0,
        max_acceleration: float | Tensor = 4.0,
        max_braking: float | Tensor = 8.0,
        min_speed: float | Tensor = 0.0,
        max_speed: float | Tensor = 30.0,
        max_steer: float | Tensor = 0.6,
        max_steer_rate: float | Tensor = 0.8,
        learnable: bool = False,
    ):
        limits = max_acceleration, max_braking, min_speed, max_speed, max_steer, max_steer_rate
        super().__init__(dt, substeps, (wheelbase, rear, *limits), learnable)
        if not bool((self.min_speed < self.max_speed).all()):
            raise InputError(
                f"bicycle: min_speed {self.min_speed.tolist()} is not below max_speed {self.max_speed.tolist()}; "
                "nothing could be driven between them"
            )
