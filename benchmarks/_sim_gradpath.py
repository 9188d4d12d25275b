"""gradpath in `bench_sim.py`: whole motions in one launch, and one for the gradient; with contact, step by step."""

from pathlib import Path

import numpy as np
import torch
from _sim_measure import weights
from _sim_systems import SYSTEMS, System
from torch import Tensor

from gradpath import kernels, sim

RATES = (9.81 * 0.75, 0.0, 0.0, 0.0), (1.0, 0.5, 0.5, 0.5)  # thrust and body rates, instead of torques


class Gradpath:
    """Gradients with respect to the commands."""

    differentiable = True
    spacing = 1e-3

    def __init__(self, system: System, file: Path, worlds: int, dtype: torch.dtype):
        torch.set_num_threads(1)
        kernels.set_threads(1)
        self.system, self.dtype = system, dtype
        if system.name == "quadrotor":
            self.body = sim.Quadrotor(system.dt).to(dtype)
            self.start = self.body.hover_state(worlds, dtype=dtype)
        else:
            self.model = sim.load(file)
            self.start = {
                "q": self.model.home.to(dtype).repeat(worlds, 1),
                "qd": torch.zeros(worlds, self.model.nv, dtype=dtype),
            }
        if system.contact:
            self.body = sim.Articulation(self.model, system.dt, contact=sim.Contact(self.model.shapes))

    def set_controls(self, controls: np.ndarray) -> None:
        """Take commands; for the quadrotor, thrusts and body rates about as large as the torques would lead to."""
        if self.system.name == "quadrotor":
            mean, spread = np.asarray(self.system.mean), np.asarray(self.system.spread)
            controls = np.asarray(RATES[0]) + np.asarray(RATES[1]) * (controls - mean) / spread
        self.controls = torch.tensor(controls, dtype=self.dtype, requires_grad=True)

    def _end(self) -> Tensor:
        """States after the last step, (worlds, numbers)."""
        if self.system.contact:
            state = self.start
            for t in range(self.controls.shape[1]):
                state = self.body(state, self.controls[:, t])["state"]
            return torch.cat([state["q"], state["qd"]], 1)
        if self.system.name == "quadrotor":
            motion = self.body.simulate(self.start, self.controls)
            return torch.cat([motion[key][:, -1] for key in ("pose", "velocity", "rates")], 1)
        motion = sim.simulate(self.model, self.start, self.controls, self.system.dt)
        return torch.cat([motion["q"][:, -1], motion["qd"][:, -1]], 1)

    def _losses(self) -> Tensor:
        end = self._end()
        return end @ torch.tensor(weights(end.shape[1]), dtype=self.dtype)

    def forward(self) -> None:
        """Run all steps."""
        with torch.no_grad():
            self.value = self._losses()

    def gradient(self) -> None:
        """Run all steps and back."""
        (self.grad,) = torch.autograd.grad(self._losses().sum(), self.controls)

    def losses(self) -> np.ndarray:
        """The loss of each world."""
        return self.value.numpy()

    def gradients(self) -> np.ndarray:
        """With respect to the commands."""
        grad = self.grad.numpy()
        if self.system.name == "quadrotor":
            grad = grad * np.asarray(RATES[1]) / np.asarray(self.system.spread)
        return grad


def build(system: System, file: Path, worlds: int, steps: int, precise: bool) -> Gradpath:
    """Every system."""
    assert system.name in SYSTEMS
    return Gradpath(system, file, worlds, torch.float64 if precise else torch.float32)
