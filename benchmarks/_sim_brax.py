"""Brax (generalized coordinates) in `bench_sim.py`: compiled scans over steps, mapped over worlds."""

from pathlib import Path

import jax
from _sim_jax import Jax
from _sim_mujoco import load
from _sim_systems import System
from brax.generalized import pipeline
from brax.io import mjcf
from jax import numpy as jnp


def build(system: System, file: Path, worlds: int, steps: int, precise: bool) -> Jax | None:
    """All but the quadrotor, whose thrust is no actuator of a joint."""
    if system.name == "quadrotor":
        return None
    jax.config.update("jax_enable_x64", precise)
    model = mjcf.load_model(load(system, file)).tree_replace({"opt.timestep": system.dt})
    state = jax.jit(pipeline.init)(model, model.init_q, jnp.zeros(model.qd_size()))

    def step(state, control):
        return pipeline.step(model, state, control)

    return Jax(step, state, lambda state: jnp.concatenate([state.q, state.qd]), precise)
