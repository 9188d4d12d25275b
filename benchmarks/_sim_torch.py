"""Plain PyTorch in `bench_sim.py`: the quadrotor and the cartpole, as one writes them down."""

from pathlib import Path

import numpy as np
import torch
from _sim_measure import weights
from _sim_systems import INERTIA, MASS, System
from torch import Tensor

CART, POLE, HALF, GYRATION = 10.47, 5.02, 0.3, 0.196  # masses [kg], lengths [m]: about those of the file


class Torch:
    """Gradients by autograd through every operation."""

    differentiable = True
    spacing = 1e-3

    def __init__(self, system: System, worlds: int, dtype: torch.dtype):
        torch.set_num_threads(1)
        self.system, self.dtype, self.dt = system, dtype, system.dt
        self.inertia = torch.tensor(INERTIA, dtype=dtype)
        self.start = torch.zeros(worlds, 13 if system.name == "quadrotor" else 4, dtype=dtype)
        if system.name == "quadrotor":
            self.start[:, 6] = 1.0

    def set_controls(self, controls: np.ndarray) -> None:
        """Take commands."""
        self.controls = torch.tensor(controls, dtype=self.dtype, requires_grad=True)

    def _fly(self, x: Tensor, u: Tensor) -> Tensor:
        p, q, v, w = x.split([3, 4, 3, 3], 1)
        axis, real = q[:, :3], q[:, 3:]
        up = torch.zeros_like(p)
        up[:, 2] = 1.0
        side = torch.linalg.cross(axis, up)
        direction = up + 2 * (real * side + torch.linalg.cross(axis, side))
        v = v + (direction * (u[:, :1] / MASS) - 9.81 * up) * self.dt
        w = w + (u[:, 1:] - torch.linalg.cross(w, self.inertia * w)) / self.inertia * self.dt
        turned = torch.cat([real * w + torch.linalg.cross(axis, w), -(axis * w).sum(1, keepdim=True)], 1)
        q = q + 0.5 * self.dt * turned
        return torch.cat([p + v * self.dt, q / q.norm(dim=1, keepdim=True), v, w], 1)

    def _balance(self, x: Tensor, u: Tensor) -> Tensor:
        place, angle, speed, rate = x.unbind(1)
        sin, cos = angle.sin(), angle.cos()
        total, lever = CART + POLE, POLE * HALF
        inertia = POLE * (HALF**2 + GYRATION**2)
        push = 100.0 * u[:, 0] - speed + lever * rate.square() * sin
        torque = 9.81 * lever * sin - rate
        determinant = total * inertia - (lever * cos).square()
        speed = speed + (inertia * push - lever * cos * torque) / determinant * self.dt
        rate = rate + (total * torque - lever * cos * push) / determinant * self.dt
        return torch.stack([place + speed * self.dt, angle + rate * self.dt, speed, rate], 1)

    def _losses(self) -> Tensor:
        step = self._fly if self.system.name == "quadrotor" else self._balance
        x = self.start
        for t in range(self.controls.shape[1]):
            x = step(x, self.controls[:, t])
        return x @ torch.tensor(weights(x.shape[1]), dtype=self.dtype)

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
        return self.grad.numpy()


def build(system: System, file: Path, worlds: int, steps: int, precise: bool) -> Torch | None:
    """Quadrotor and cartpole: few would write down more."""
    if system.name not in ("quadrotor", "cartpole"):
        return None
    return Torch(system, worlds, torch.float64 if precise else torch.float32)
