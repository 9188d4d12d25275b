"""MJX in `bench_sim.py`: compiled scans over steps, mapped over worlds.

Its solver loops are cut to one iteration, as the reverse mode of JAX asks for; without contact it has none.
"""

from pathlib import Path

import jax
from _sim_jax import Jax
from _sim_mujoco import load
from _sim_systems import System
from jax import numpy as jnp
from mujoco import mjx


def build(system: System, file: Path, worlds: int, steps: int, precise: bool) -> Jax:
    """Every system."""
    jax.config.update("jax_enable_x64", precise)
    host = load(system, file)
    host.opt.iterations, host.opt.ls_iterations = 1, 4
    model = mjx.put_model(host)
    data = mjx.make_data(model)

    def step(data, control):
        return mjx.step(model, data.replace(ctrl=control))

    return Jax(step, data, lambda data: jnp.concatenate([data.qpos, data.qvel]), precise)
