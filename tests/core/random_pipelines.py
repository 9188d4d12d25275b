"""Random pipelines that nothing is wrong with, of any depth, width, horizon, stiffness, precision and batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import relax


class Sense(gp.Stage):
    """Noisy observation of a state, squashed or linear."""

    contract: gp.Contract

    def __init__(self, size: int, noise: float, squash: bool):
        super().__init__()
        self.contract = gp.Contract(
            inputs={"state": {"position": f"B {size}", "velocity": f"B {size}"}, "generator": "generator"},
            outputs={"seen": f"B {2 * size}"},
        )
        self.noise, self.squash = noise, squash

    def forward(self, state: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        seen = torch.cat([state["position"], state["velocity"]], -1)
        seen = torch.tanh(seen) if self.squash else seen
        noise = torch.randn(seen.shape, generator=generator, dtype=seen.dtype)
        return seen + self.noise * noise


class Encode(gp.Stage):
    """A perceptron on observation and goal, with or without a recurrent memory."""

    contract: gp.Contract

    def __init__(self, size: int, width: int, depth: int, recurrent: bool):
        super().__init__()
        self.contract = gp.Contract(
            inputs={"seen": f"B {2 * size}", "goal": f"B {size}", "memory": f"B {width}"},
            outputs={"feature": f"B {width}", "memory": f"B {width}"},
        )
        layers: list[nn.Module] = [nn.Linear(3 * size, width), nn.Tanh()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), random.choice([nn.Tanh, nn.SiLU, nn.ReLU])()]
        self.net = nn.Sequential(*layers)
        self.cell = nn.GRUCell(width, width) if recurrent else None

    def forward(self, seen: Tensor, goal: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.net(torch.cat([seen, goal], -1))
        if self.cell is None:
            return feature, 0.7 * memory + 0.3 * feature
        memory = self.cell(feature, memory)
        return memory, memory


class Act(gp.Stage):
    """A bounded force, with or without a relaxed dead zone."""

    contract: gp.Contract

    def __init__(self, size: int, width: int, bound: float, dead: bool):
        super().__init__()
        self.contract = gp.Contract(
            inputs={"feature": f"B {width}"},
            outputs={"force": f"B {size}"},
            gradient="relaxed" if dead else "exact",
        )
        self.head = nn.Linear(width, size)
        self.bound, self.dead = bound, dead

    def forward(self, feature: Tensor) -> Tensor:
        force = torch.tanh(self.head(feature))
        if self.dead:
            force = force * relax.step(force.abs() - 0.05, tau=0.02)
        return self.bound * force


class Body(gp.Stage):
    """Masses on springs with dampers, by symplectic Euler, within its limit of stability."""

    contract: gp.Contract

    def __init__(self, size: int, stiffness: float, damping: float, dt: float, learnable: bool):
        super().__init__()
        state = {"position": f"B {size}", "velocity": f"B {size}"}
        self.contract = gp.Contract(inputs={"state": state, "force": f"B {size}"}, outputs={"state": state})
        self.damping, self.dt = damping, dt
        value = torch.tensor(stiffness)
        self.stiffness = nn.Parameter(value) if learnable else value.item()

    def forward(self, state: dict[str, Tensor], force: Tensor) -> dict[str, Tensor]:
        pull = force - self.stiffness * state["position"] - self.damping * state["velocity"]
        velocity = state["velocity"] + self.dt * pull
        return {"position": state["position"] + self.dt * velocity, "velocity": velocity}


class Log(gp.Stage):
    """What is shown to people and matters to nobody else."""

    contract = gp.Contract(inputs={"tag": "B 1", "force": "B N"}, outputs={"shown": "B N"})

    def forward(self, tag: Tensor, force: Tensor) -> Tensor:
        return tag * force


@dataclass
class Example:
    """A healthy model, a batch of its inputs and its losses."""

    model: gp.Rollout
    batch: dict[str, Any]
    losses: gp.Losses
    text: str


def healthy(seed: int) -> Example:
    """Draw one."""
    random.seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _draw()


def _draw() -> Example:
    size, width, depth = random.randint(1, 6), random.randint(4, 48), random.randint(0, 3)
    length, worlds = random.randint(4, 24), random.randint(2, 24)
    stiffness = 10.0 ** random.uniform(-1.0, 3.0)
    dt = min(0.1, random.uniform(0.2, 0.8) / stiffness**0.5)  # stable up to 2
    damping = 2.0 * random.uniform(0.05, 1.0) * stiffness**0.5
    recurrent, squash, dead = (random.random() < 0.5 for _ in range(3))
    double, nested, running = random.random() < 0.3, random.random() < 0.3, random.random() < 0.5
    sense, encode = Sense(size, random.choice([0.0, 0.02]), squash), Encode(size, width, depth, recurrent)
    stages: dict[str, gp.Stage] = {"sense": sense, "encode": encode}
    feature, memory = "encode.feature", "encode.memory"
    wires: dict[str, str] = {"sense.state": "state"}
    if nested:
        inner = gp.Pipeline(**stages, wires=wires, outputs=[feature, memory])
        stages, wires = {"perceive": inner}, {"perceive.state": "state"}
        feature, memory = f"perceive.{feature}", f"perceive.{memory}"
    stages["act"] = Act(size, width, stiffness * 0.5 + 1.0, dead)
    stages["body"] = Body(size, stiffness, damping, dt, random.random() < 0.3)
    stages["log"] = Log()
    wires |= {"act.feature": feature, "body.state": "state"}
    step = gp.Pipeline(**stages, wires=wires, outputs=["act.force", "log.shown"])
    setting = random.choice(["all", 3, "20MB"])
    carry = {"state": "body.state", "memory": memory}
    model = gp.Rollout(step, length, carry, memory=setting, decay=random.choice([None, 0.98]), dt=None)
    goal = random.uniform(0.3, 1.0) * torch.randn(worlds, size)
    start = {
        "position": torch.randn(worlds, size),
        "velocity": 0.3 * stiffness**0.5 * torch.randn(worlds, size),
    }
    batch: dict[str, Any] = {"state": start, "goal": goal, "tag": torch.randn(worlds, 1)}
    if random.random() < 0.5:
        batch["memory"] = 0.1 * torch.randn(worlds, width)
    if double:
        model = model.double()
        batch = {key: _double(value) for key, value in batch.items()}
    batch["generator"] = torch.Generator().manual_seed(random.randrange(1000))
    text = (
        f"{size} masses, width {width}, depth {depth}, {length} steps, {worlds} worlds, stiffness {stiffness:.3g}, "
        f"dt {dt:.3g}, {'float64' if double else 'float32'}, memory {setting}, recurrent {recurrent}, nested {nested}, "
        f"dead zone {dead}, running {running}"
    )
    return Example(model, batch, _losses(running, stiffness), text)


def _losses(running: bool, stiffness: float) -> gp.Losses:
    def reach(position: Tensor, goal: Tensor) -> Tensor:
        distance = (position - goal).square().mean(-1)
        return distance if running else distance[-1]

    def effort(force: Tensor) -> Tensor:
        return (force / (1.0 + stiffness)).square().mean(-1)

    def rest(velocity: Tensor) -> Tensor:
        return (velocity / (1.0 + stiffness**0.5)).square().mean(-1)

    return gp.Losses(
        reach=(1.0, reach, "body.state.position", "goal"),
        effort=(10.0 ** random.uniform(-2.0, 0.0), effort, "act.force"),
        rest=(10.0 ** random.uniform(-2.0, 0.0), rest, "body.state.velocity"),
    )


def _double(value: Any) -> Any:
    return {key: _double(v) for key, v in value.items()} if isinstance(value, dict) else value.double()
