"""A quadrotor as vision-based flight work models it: collective thrust and body rates as the command.

A rigid body with gravity, thrust along its z axis, quadratic drag on the air-relative velocity in body axes, and a
low-level controller that is a first-order lag on thrust and on body rates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.contract import Contract
from gradpath.sim.quadrotor_functions import GRAVITY
from gradpath.sim.vehicle import Value, Vehicle, VehicleStage, specs

_STATE = {"pose": Value("B 7"), "velocity": Value("B 3"), "rates": Value("B 3"), "thrust": Value("B")}
_PARAMETERS = {
    "mass": Value("B", above=0),
    "drag": Value("B 3", above=0, closed=True),
    "thrust_lag": Value("B", above=0),
    "rate_lag": Value("B", above=0),
    "max_thrust": Value("B", above=0),
    "max_rates": Value("B 3", above=0),
}
_QUADROTOR = Vehicle("quadrotor", _STATE, 4, _PARAMETERS, {"wind": Value("B 3")})


def _samples(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    control = torch.cat([8 + random(3, 1), random(3, 3)], -1)
    # Beyond the limits: the gradient is then that of the limits.
    control[1::3, :2] = torch.tensor([60.0, 30.0, -30.0, 30.0], dtype=torch.float64)
    control[2::3, 1:] = torch.tensor([-5.0, -30.0, 0.5, -30.0], dtype=torch.float64)
    pose = geometry.pose(random(3), geometry.quat_normalize(random(4)))
    lags, limits = 0.05 + 0.005 * random(2), torch.cat([20 + random(1), 6 + 0.1 * random(3)], -1)
    return {
        "state": torch.cat([pose, 3 * random(3), random(3), 8 + random(1)], -1),
        "control": control.flatten(1),
        "params": torch.cat([1 + 0.1 * random(1), 0.1 + 0.02 * random(3), lags, limits, random(3)], -1),
        "time": 1 / 30,
    }


_QUADROTOR.register(_samples)


def quadrotor_step(
    state: Mapping[str, Tensor],
    control: Tensor,
    wind: Tensor | None,
    parameters: Mapping[str, Tensor],
    dt: float,
    substeps: int = 1,
) -> dict[str, Tensor]:
    """Advance quadrotors by one control step.

    Position, velocity: p += v h + a h^2 / 2, v += a h over substeps of h = dt / substeps. Thrust and rates follow
    their commands as exact first-order responses; the attitude turns by the exponential of the mean rate, and
    forces act at the attitude in the middle of the substep.

    Args:
        state: `pose` (B, 7); `velocity` in the world [m/s] (B, 3); `rates`, of the body about its own axes [rad/s]
            (B, 3); `thrust` along body z [N] (B,).
        control: Commanded thrust [N] and body rates [rad/s], shape (B, 4); limited to what the parameters allow.
        wind: Velocity of the air in the world [m/s], shape (B, 3); still air when None.
        parameters: `mass` [kg] (B,), `drag` per body axis [N s^2/m^2] (B, 3), `thrust_lag` and `rate_lag` time
            constants [s] (B,), `max_thrust` [N] (B,), `max_rates` [rad/s] (B, 3).
        dt: Duration of the step [s].
        substeps: Number of substeps.
    Returns:
        The state after the step, with the names and shapes of `state`.
    Raises:
        InputError: substeps or dt not positive, a pose that is none, or a state or command that is not finite; the
            last two are not looked for on a GPU, where such a command spoils the state instead.
        ShapeError: a tensor of another shape or dtype.
    Gradients: exact in everything but dt. A command beyond its limit has gradient zero, and the limit then has it. A
        quaternion counts by its direction; along its length the gradient is zero.
    """
    values = _in_wind(state, wind, parameters)
    return _QUADROTOR.step(state, control, values, dt, substeps)


def _in_wind(
    state: Mapping[str, Tensor], wind: Tensor | None, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    geometry.check_poses(state["pose"], "quadrotor")
    return {**parameters, "wind": torch.zeros_like(state["velocity"]) if wind is None else wind}


class Quadrotor(VehicleStage):
    """Quadrotors, one per world: state and command in, state after one control step out.

    Inputs: `state`, `control`, optional `wind`, and optional `parameters` that replace the stage's own for one
    call, per world; see `quadrotor_step` for shapes and units. Output: `state`.

    Args:
        dt: Duration of a control step [s].
        substeps: Integration steps per control step.
        mass: Mass [kg].
        drag: Quadratic drag of each body axis [N s^2/m^2].
        thrust_lag: Time constant of the motors [s].
        rate_lag: Time constant of the body rates [s].
        max_thrust: Largest collective thrust [N].
        max_rates: Largest body rates [rad/s].
        learnable: Makes the six values above `nn.Parameter`s; otherwise they are buffers.

    Each value is a number (or three), or a tensor with one row per world.

    Raises:
        InputError: a value that is not positive and finite (drag may be zero), or of another shape; when called, a
            pose that is none or a command that is not finite (see `quadrotor_step`).
    Gradients: exact in state, control, wind and parameters.
    """

    contract = Contract(
        inputs={"state": specs(_STATE), "control": "B 4", "wind": "B 3", "parameters": specs(_PARAMETERS)},
        outputs={"state": specs(_STATE)},
    )
    vehicle = _QUADROTOR

    mass: Tensor

    def __init__(
        self,
        dt: float,
        substeps: int = 1,
        *,
        mass: float | Tensor = 0.75,
        drag: Sequence[float] | Tensor = (0.03, 0.03, 0.05),
        thrust_lag: float | Tensor = 0.03,
        rate_lag: float | Tensor = 0.05,
        max_thrust: float | Tensor = 30.0,
        max_rates: Sequence[float] | Tensor = (6.0, 6.0, 3.0),
        learnable: bool = False,
    ):
        super().__init__(dt, substeps, (mass, drag, thrust_lag, rate_lag, max_thrust, max_rates), learnable)

    def forward(
        self,
        state: Mapping[str, Tensor],
        control: Tensor,
        wind: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Advance by one control step; see `quadrotor_step`."""
        if parameters is None:
            parameters = self.parameters_per_world(len(control))
        return quadrotor_step(state, control, wind, parameters, self.dt, self.substeps)

    def simulate(
        self,
        state: Mapping[str, Tensor],
        controls: Tensor,
        wind: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the states after each of T steps under commands (B, T, 4): one launch, and one for the gradient.

        The same as T calls, with an axis T after that of the worlds; the wind (B, 3) and the parameters stay the same.
        """
        if parameters is None:
            parameters = self.parameters_per_world(len(controls))
        values = _in_wind(state, wind, parameters)
        return self.vehicle.simulate(state, controls, values, self.dt, self.substeps)

    def hover_state(
        self,
        batch: int,
        position: Sequence[float] | Tensor = (0.0, 0.0, 0.0),
        yaw: float | Tensor = 0.0,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Return the state at rest that carries its own weight.

        Args:
            batch: Number of worlds B.
            position: Position [m], shape (3,) or (B, 3).
            yaw: Heading about world z [rad], a number or shape (B,).
            dtype: Float dtype; that of the parameters by default.
        """
        mass = self.mass
        like = torch.zeros((), dtype=dtype or mass.dtype, device=mass.device)
        up = like.new_tensor([0.0, 0.0, 1.0])
        heading = torch.as_tensor(yaw).to(like).expand(batch)
        place = torch.as_tensor(position).to(like).expand(batch, 3)
        return {
            "pose": geometry.pose(place, geometry.quat_from_axis_angle(up, heading)),
            "velocity": like.new_zeros(batch, 3),
            "rates": like.new_zeros(batch, 3),
            "thrust": (mass * GRAVITY).to(like).expand(batch).clone(),
        }
