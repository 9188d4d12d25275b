"""Kernel of `gradpath.sim.quadrotor`, as a factory over the float type and the number of substeps."""
# mypy: ignore-errors
# Kernels are written in Warp's language: their annotations are values, not Python types.

import warp as wp

from gradpath.warp_geometry import make_quat_exp, make_safe_length


def make_quadrotor_step(scalar, substeps):
    """Return the kernel of one control step, launched over the worlds."""
    vec2, vec3, vec4 = (wp.types.vector(size, scalar) for size in (2, 3, 4))
    transform = wp.types.transformation(scalar)
    quat_exp, safe_length = make_quat_exp(scalar), make_safe_length(scalar)

    @wp.func
    def quadratic_drag(coefficient: vec3, air_velocity: vec3):
        speed = safe_length(safe_length(air_velocity[0], air_velocity[1]), air_velocity[2])
        return -speed * wp.cw_mul(coefficient, air_velocity)

    @wp.func
    def limit(value: scalar, low: scalar, high: scalar):
        if not wp.isfinite(value):  # min and max would make a full command of it, and nobody would know
            return value
        return wp.max(wp.min(value, high), low)

    @wp.kernel(module="unique")
    def _step_quadrotor(
        # In:
        pose: wp.array(dtype=transform),  # (B,)
        velocity: wp.array(dtype=vec3),  # (B,) world [m/s]
        rates: wp.array(dtype=vec3),  # (B,) body [rad/s]
        thrust: wp.array(dtype=scalar),  # (B,) [N]
        control: wp.array(dtype=vec4),  # (B,) thrust [N], body rates [rad/s]
        wind: wp.array(dtype=vec3),  # (B,) world [m/s]
        # Model:
        mass: wp.array(dtype=scalar),  # (B,) [kg]
        drag: wp.array(dtype=vec3),  # (B,) body [N s^2/m^2]
        lags: wp.array(dtype=vec2),  # (B,) of thrust and of rates [s]
        max_thrust: wp.array(dtype=scalar),  # (B,) [N]
        max_rates: wp.array(dtype=vec3),  # (B,) [rad/s]
        step_time: scalar,  # [s]
        gravity: scalar,  # [m/s^2]
        # Out:
        pose_out: wp.array(dtype=transform),
        velocity_out: wp.array(dtype=vec3),
        rates_out: wp.array(dtype=vec3),
        thrust_out: wp.array(dtype=scalar),
    ):
        world = wp.tid()
        dt = step_time / scalar(wp.static(float(substeps)))
        command = control[world]
        thrust_goal = limit(command[0], scalar(0.0), max_thrust[world])
        most = max_rates[world]
        rates_goal = vec3(
            limit(command[1], -most[0], most[0]),
            limit(command[2], -most[1], most[1]),
            limit(command[3], -most[2], most[2]),
        )
        # A first-order lag decays exponentially; over a step its mean is what moves the body.
        thrust_ratio, rates_ratio = dt / lags[world][0], dt / lags[world][1]
        thrust_decay, rates_decay = wp.exp(-thrust_ratio), wp.exp(-rates_ratio)
        thrust_mean = (scalar(1.0) - thrust_decay) / thrust_ratio
        rates_mean = (scalar(1.0) - rates_decay) / rates_ratio
        p = wp.transform_get_translation(pose[world])
        q = wp.transform_get_rotation(pose[world])
        v = velocity[world]
        thrust_error = thrust[world] - thrust_goal
        rates_error = rates[world] - rates_goal
        for _ in range(wp.static(substeps)):
            half_turn = quat_exp((rates_goal + rates_error * rates_mean) * (scalar(0.5) * dt))
            q_middle = q * half_turn
            air_velocity = wp.quat_rotate_inv(q_middle, v - wind[world])
            force = quadratic_drag(drag[world], air_velocity)
            force += vec3(scalar(0.0), scalar(0.0), thrust_goal + thrust_error * thrust_mean)
            a = wp.quat_rotate(q_middle, force) / mass[world] - vec3(scalar(0.0), scalar(0.0), gravity)
            p = p + v * dt + a * (scalar(0.5) * dt * dt)
            v = v + a * dt
            q = wp.normalize(q_middle * half_turn)
            thrust_error = thrust_error * thrust_decay
            rates_error = rates_error * rates_decay
        pose_out[world] = transform(p, q)
        velocity_out[world] = v
        rates_out[world] = rates_goal + rates_error
        thrust_out[world] = thrust_goal + thrust_error

    return _step_quadrotor
