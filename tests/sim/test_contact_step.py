import math
from pathlib import Path

import pytest
import torch

from gradpath import sim

gymnasium = pytest.importorskip("gymnasium")
mujoco = pytest.importorskip("mujoco")
ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"


def test_half_cheetah_comes_to_rest_as_in_mujoco():
    path = str(ASSETS / "half_cheetah.xml")
    theirs = mujoco.MjModel.from_xml_path(path)
    data = mujoco.MjData(theirs)
    start = torch.tensor(data.qpos.copy())[None]
    for _ in range(6000):  # its friction creeps, as ours does, until nothing pulls at the feet
        mujoco.mj_step(theirs, data)
    model = sim.load(path)
    robot = sim.Articulation(model, 0.05, 5, contact=sim.Contact(model.shapes, 2e4, 1.0))
    state = {"q": start, "qd": torch.zeros(1, model.nv, dtype=torch.float64)}
    with torch.no_grad():
        for _ in range(400):
            state = robot(state, torch.zeros(1, model.nu, dtype=torch.float64))["state"]
    difference = (state["q"][0] - torch.tensor(data.qpos)).abs()
    assert difference[1] < 0.01  # height [m]
    assert difference[2:].max() < math.radians(2.0)
    assert state["qd"].abs().max() < 1e-2
