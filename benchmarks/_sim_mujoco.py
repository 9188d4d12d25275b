"""MuJoCo in `bench_sim.py`: forward only, one world after the other, Euler steps."""

from pathlib import Path

import mujoco
import numpy as np
from _sim_measure import weights
from _sim_systems import INERTIA, MASS, System

MOTOR = '<motor site="middle" gear="{}"/>'
QUADROTOR = f"""<mujoco><worldbody><body name="quadrotor"><freejoint/>
<inertial pos="0 0 0" mass="{MASS}" diaginertia="{" ".join(map(str, INERTIA))}"/><site name="middle"/>
</body></worldbody><actuator>
{"".join(MOTOR.format(gear) for gear in ("0 0 1 0 0 0", "0 0 0 1 0 0", "0 0 0 0 1 0", "0 0 0 0 0 1"))}
</actuator></mujoco>"""


def load(system: System, file: Path) -> mujoco.MjModel:
    """The model with the benchmark's step; without contact and limits where nothing touches."""
    if system.name == "quadrotor":
        model = mujoco.MjModel.from_xml_string(QUADROTOR)
    else:
        model = mujoco.MjModel.from_xml_path(str(file))
    model.opt.timestep = system.dt
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    if not system.contact:
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
    return model


class MuJoCo:
    """No gradient."""

    differentiable = False
    spacing = 1e-3

    def __init__(self, system: System, file: Path, worlds: int):
        self.model = load(system, file)
        self.data = [mujoco.MjData(self.model) for _ in range(worlds)]

    def set_controls(self, controls: np.ndarray) -> None:
        """Take commands."""
        self.controls = controls

    def forward(self) -> None:
        """Run all steps."""
        model, step = self.model, mujoco.mj_step
        for data, commands in zip(self.data, self.controls, strict=True):
            mujoco.mj_resetData(model, data)
            for command in commands:
                data.ctrl[:] = command
                step(model, data)

    def gradient(self) -> None:
        """Not there."""
        raise NotImplementedError("MuJoCo has no gradient")

    def losses(self) -> np.ndarray:
        """The loss of each world."""
        ends = np.array([np.concatenate([data.qpos, data.qvel]) for data in self.data])
        return ends @ weights(ends.shape[1])

    def gradients(self) -> np.ndarray:
        """Not there."""
        raise NotImplementedError("MuJoCo has no gradient")


def build(system: System, file: Path, worlds: int, steps: int, precise: bool) -> MuJoCo:
    """Every system."""
    return MuJoCo(system, file, worlds)
