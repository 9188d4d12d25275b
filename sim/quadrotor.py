"""A quadrotor as vision-based flight work models it: collective thrust and body rates as the command.

A rigid body with gravity, thrust along its z axis, quadratic drag on the air-relative velocity in body axes, and a
low-level controller that is a first-order lag on thrust and on body rates.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradpath import geometry, kernels
from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.sim.quadrotor_kernels import make_quadrotor_step
from gradpath.stage import Stage

GRAVITY = 9.81  # [m/s^2]

MAX_SUBSTEPS = 16  # a longer loop is not unrolled, and its automatic adjoint would be silently wrong

STATE = {"pose": "B 7", "velocity": "B 3", "rates": "B 3", "thrust": "B"}

PARAMETERS = {
    "mass": "B",
    "drag": "B 3",
    "thrust_lag": "B",
    "rate_lag": "B",
    "max_thrust": "B",
    "max_rates": "B 3",
}


def _step_samples(batch: int) -> dict[str, Tensor | float]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    control = torch.cat([8 + random(1), random(3)], -1)
    # Beyond the limits: the gradient is then that of the limits.
    control[1::3] = torch.tensor([60.0, 30.0, -30.0, 30.0], dtype=torch.float64)
    control[2::3] = torch.tensor([-5.0, -30.0, 0.5, -30.0], dtype=torch.float64)
    return {
        "pose": geometry.pose(random(3), geometry.quat_normalize(random(4))),
        "velocity": 3 * random(3),
        "rates": random(3),
        "thrust": 8 + random(),
        "control": control,
        "wind": random(3),
        "mass": 1 + 0.1 * random(),
        "drag": 0.1 + 0.02 * random(3),
        "lags": 0.05 + 0.005 * random(2),
        "max_thrust": 20 + random(),
        "max_rates": 6 + 0.1 * random(3),
        "step_time": 1 / 15,
        "gravity": GRAVITY,
    }


@functools.cache
def _step_op(substeps: int) -> kernels.Op:
    return kernels.Op(
        f"quadrotor_step_{substeps}",
        functools.partial(make_quadrotor_step, substeps=substeps),
        inputs={
            "pose": "B transform",
            "velocity": "B vec3",
            "rates": "B vec3",
            "thrust": "B scalar",
            "control": "B vec4",
            "wind": "B vec3",
            "mass": "B scalar",
            "drag": "B vec3",
            "lags": "B vec2",
            "max_thrust": "B scalar",
            "max_rates": "B vec3",
        },
        constants={"step_time": "scalar", "gravity": "scalar"},
        outputs={
            "pose_out": "B transform",
            "velocity_out": "B vec3",
            "rates_out": "B vec3",
            "thrust_out": "B scalar",
        },
        launch="B",
        samples=_step_samples,
    )


for _substeps in (1, 4):  # registered at import, so that the tests of all operations see them
    _step_op(_substeps)


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
        substeps: Number of substeps, 1 to 16.
    Returns:
        The state after the step, with the names and shapes of `state`.
    Raises:
        InputError: substeps out of range, dt not positive, a pose that is none, or a command that is not finite; the
            last two are not looked for on a GPU, where such a command spoils the state instead.
        ShapeError: a tensor of another shape or dtype.
    Gradients: exact in everything but dt. A command beyond its limit has gradient zero, and the limit then has it.
    """
    _check_step(dt, substeps)
    geometry.check_poses(state["pose"], "quadrotor")
    _check_control(control)
    pose, velocity, rates, thrust = _step_op(substeps)(
        state["pose"],
        state["velocity"],
        state["rates"],
        state["thrust"],
        control,
        torch.zeros_like(state["velocity"]) if wind is None else wind,
        parameters["mass"],
        parameters["drag"],
        torch.stack([parameters["thrust_lag"], parameters["rate_lag"]], -1),
        parameters["max_thrust"],
        parameters["max_rates"],
        step_time=dt,
        gravity=GRAVITY,
    )
    return {"pose": pose, "velocity": velocity, "rates": rates, "thrust": thrust}


class Quadrotor(Stage):
    """Quadrotors, one per world: state and command in, state after one control step out.

    Inputs: `state`, `control`, optional `wind`, and optional `parameters` that replace the stage's own for one
    call, per world; see `quadrotor_step` for shapes and units. Output: `state`.

    Args:
        dt: Duration of a control step [s].
        substeps: Integration steps per control step, 1 to 16.
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
        inputs={"state": STATE, "control": "B 4", "wind": "B 3", "parameters": PARAMETERS},
        outputs={"state": STATE},
    )

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
        super().__init__()
        _check_step(dt, substeps)
        self.dt = dt
        self.substeps = substeps
        values = (mass, drag, thrust_lag, rate_lag, max_thrust, max_rates)
        for (name, spec), value in zip(PARAMETERS.items(), values, strict=True):
            tensor = _checked(name, value, axes=3 if spec.endswith("3") else None)
            if learnable:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

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

    def parameters_per_world(self, batch: int) -> dict[str, Tensor]:
        """Return the parameters of each of `batch` worlds: what the input `parameters` takes."""
        values = {}
        for name, spec in PARAMETERS.items():
            value = getattr(self, name)
            values[name] = value.expand(batch, 3) if spec.endswith("3") else value.expand(batch)
        return values

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


def _checked(name: str, value: float | Sequence[float] | Tensor, axes: int | None) -> Tensor:
    tensor = torch.as_tensor(value)
    tensor = tensor.clone() if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    inner = () if axes is None else (axes,)
    if tensor.shape != inner and tensor.shape[1:] != inner:
        expected = "a number or shape (B,)" if axes is None else f"{axes} numbers or shape (B, {axes})"
        raise InputError(f"quadrotor {name}: expected {expected}, got shape {tuple(tensor.shape)}")
    least_allowed = tensor >= 0 if name == "drag" else tensor > 0
    if not bool((least_allowed & torch.isfinite(tensor)).all()):
        bound = "zero or more" if name == "drag" else "positive"
        raise InputError(f"quadrotor {name}: expected finite values, {bound}, got {tensor.tolist()}")
    return tensor


def _check_control(control: Tensor) -> None:
    if control.is_cuda:
        return
    finite = torch.isfinite(control)
    if not bool(finite.all()):
        world = int((~finite).nonzero()[0, 0])
        raise InputError(
            f"quadrotor: the control of world {world} is {control.detach()[world].tolist()}; the limits of thrust and "
            "rates would hide that, find the step or the weights it came from"
        )


def _check_step(dt: float, substeps: int) -> None:
    if not 1 <= substeps <= MAX_SUBSTEPS:
        raise InputError(
            f"quadrotor substeps: expected 1 to {MAX_SUBSTEPS}, got {substeps}; shorten dt instead"
        )
    if not dt > 0:
        raise InputError(f"quadrotor dt: expected a positive duration in seconds, got {dt}")
