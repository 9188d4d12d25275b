"""What Brax and MJX share in `bench_sim.py`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from _sim_measure import weights
from jax import numpy as jnp


class Jax:
    """A scan over steps of a function (state, control) -> state, compiled, forward and with its reverse mode."""

    differentiable = True
    spacing = 1e-3

    def __init__(
        self, step: Callable[[Any, Any], Any], start: Any, numbers: Callable[[Any], Any], precise: bool
    ):
        self.precise = precise

        def loss(controls: Any) -> Any:
            end, _ = jax.lax.scan(lambda state, u: (step(state, u), None), start, controls)
            end = numbers(end)
            return end @ jnp.asarray(weights(len(end)), end.dtype)

        self.run = jax.jit(jax.vmap(loss))
        self.run_back = jax.jit(jax.vmap(jax.grad(loss)))

    def set_controls(self, controls: np.ndarray) -> None:
        """Take commands."""
        self.controls = jnp.asarray(controls, jnp.float64 if self.precise else jnp.float32)

    def forward(self) -> None:
        """Run all steps."""
        self.value = self.run(self.controls).block_until_ready()

    def gradient(self) -> None:
        """Run all steps and back."""
        self.grad = self.run_back(self.controls).block_until_ready()

    def losses(self) -> np.ndarray:
        """The loss of each world."""
        return np.asarray(self.value)

    def gradients(self) -> np.ndarray:
        """With respect to the commands."""
        return np.asarray(self.grad)
