"""Stages of the reaching task between camera and torques: find the ball, remember it, aim, plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import gradpath as gp
from gradpath import geometry, perception, planners, sim
from gradpath.examples.reach_arm import JOINTS, TORQUES, Arm, load_arm, upright
from gradpath.examples.reach_scene import FIELD_OF_VIEW, HIGH, LOW, MOUNT, RADIUS
from gradpath.render import pinhole

REFERENCE = 0.4  # depth that the depth sensor shows as 1 [m]
LEAST_STD = 2e-3  # of a measured position [m]
STRIDE = 0.15  # farthest that a plan aims ahead of the tool [m]
BRAKING_RATE = 7.0  # at which joint rates are taken out where there is no plan [1/s]
FALLING_SUBSTEPS = 50  # of a step in which the arm falls into the stops of its joints
BELIEF = {"mean": "B 3", "covariance": "B 3 3"}
SEEN = {"rgb": "B 3 H W", "image": "B 1 H W"}
FOUND = {"position": "B 3", "log_std": "B"}


class KeypointFinder(gp.Stage):
    """Where the ball is in the camera frame: a heat map says which pixels show it, their depth says how far it is.

    The position is a mean over the pixels, weighted by the softmax of the heat, in every mode.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        channels: Of the convolutions, which keep the size of the image.

    Inputs: `rgb` (B, 3, H, W), `image`, inverse depth in units of 1 / `REFERENCE`, (B, 1, H, W).
    Outputs: `position` (B, 3) [m], `log_std` (B,), the logarithm of its standard deviation [m]. Gradients: exact.
    References: Levine et al. 2016, End-to-End Training of Deep Visuomotor Policies (spatial soft argmax).
    """

    contract = gp.Contract(inputs=SEEN, outputs=FOUND)
    intrinsics: Tensor

    def __init__(self, height: int = 48, width: int = 48, channels: int = 16):
        super().__init__()
        layers: list[nn.Module] = []
        before = 4
        for spread in (1, 2, 4):
            layers += [nn.Conv2d(before, channels, 3, padding=spread, dilation=spread), nn.LeakyReLU(0.05)]
            before = channels
        self.features = nn.Sequential(*layers)
        self.heat = nn.Conv2d(channels, 1, 1)
        self.offset = nn.Parameter(torch.tensor(0.7 * RADIUS))  # from the visible side to the centre [m]
        self.spread = nn.Linear(channels + 2, 1)
        with torch.no_grad():
            self.spread.weight.mul_(0.1)
            self.spread.bias.fill_(-3.0)
        self.register_buffer("intrinsics", pinhole(width, height, FIELD_OF_VIEW).float())

    def forward(self, rgb: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Find one ball per world."""
        features = self.features(torch.cat([rgb, image], 1) - 0.5)
        weight = torch.softmax(self.heat(features).flatten(1), -1)
        height, width = image.shape[-2:]
        inverse = (weight * image.flatten(1)).sum(-1).clamp_min(1e-3)
        maps = weight.unflatten(-1, (height, width))
        u, v = maps.sum(-2) @ _centres(width, rgb), maps.sum(-1) @ _centres(height, rgb)
        ray = torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(self.intrinsics).T
        position = (REFERENCE / inverse + self.offset)[:, None] * ray
        pooled = (features.flatten(2) @ weight[..., None])[..., 0]
        doubt = -(weight * (weight + 1e-9).log()).sum(-1, keepdim=True)
        known = torch.cat([pooled, doubt, inverse[:, None]], -1)
        return position, self.spread(known)[:, 0].clamp(-7.0, 1.0)


class FeatureFinder(gp.Stage):
    """Where the ball is in the camera frame, from any encoder of four channels and two linear heads.

    Args:
        encoder: From `image` (B, 4, H, W), colour and inverse depth, to `feature` (B, features).
        features: Size of the feature.

    Inputs and outputs: as `KeypointFinder`. Gradients: exact.
    """

    contract = gp.Contract(inputs=SEEN, outputs=FOUND)

    def __init__(self, encoder: gp.Stage, features: int = 64):
        super().__init__()
        self.encoder = encoder
        self.position = nn.Linear(features, 3)
        self.spread = nn.Linear(features, 1)
        with torch.no_grad():
            self.position.weight.mul_(0.1)
            self.position.bias.copy_(torch.tensor([0.0, 0.0, REFERENCE]))
            self.spread.weight.mul_(0.1)
            self.spread.bias.fill_(-3.0)

    def forward(self, rgb: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Find one ball per world."""
        feature = self.encoder(torch.cat([rgb, image], 1) - 0.5)
        return self.position(feature), self.spread(feature)[:, 0].clamp(-7.0, 1.0)


def finder(name: str, height: int, width: int) -> gp.Stage:
    """Return what finds the ball, by name: swapping this stage is one argument."""
    if name == "keypoint":
        return KeypointFinder(height, width)
    if name == "conv":
        return FeatureFinder(perception.ConvEncoder(height, width, channels_in=4, features=64, norm=False))
    if name == "vit":
        return FeatureFinder(perception.VisionTransformer(height, width, channels_in=4, size=64, depth=2))
    raise gp.InputError(f'no encoder "{name}"; there are keypoint, conv and vit')


class Track(gp.Stage):
    """What is known about where the ball is in the world: each measurement updates a Gaussian belief (Kalman).

    Inputs: `position` (B, 3) in the camera frame [m], `log_std` (B,); `hand`, its pose in the world (B, 7), from the
    joint encoders; `belief`, `mean` (B, 3) and `covariance` (B, 3, 3).
    Outputs: the next `belief`; `measured`, the position in the world (B, 3). What is not finite, from a camera that
    failed, is not measured. Gradients: exact.
    """

    contract = gp.Contract(
        inputs={**FOUND, "hand": "B 7", "belief": BELIEF}, outputs={"belief": BELIEF, "measured": "B 3"}
    )

    def forward(
        self, position: Tensor, log_std: Tensor, hand: Tensor, belief: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Take one measurement into account."""
        camera = geometry.pose_compose(hand, hand.new_tensor(MOUNT))
        measured = geometry.pose_apply(camera, position)
        unit = torch.eye(3, dtype=hand.dtype, device=hand.device)
        variance = torch.exp(2.0 * log_std) + LEAST_STD**2
        seen = measured.isfinite().all(-1) & variance.isfinite()
        noise = torch.where(seen, variance, 1.0)[:, None, None] * unit
        mean, covariance, _ = perception.kalman_update(
            belief["mean"], belief["covariance"], torch.where(seen[:, None], measured, torch.nan), unit, noise
        )
        return {"belief": {"mean": mean, "covariance": covariance}, "measured": measured}


class Told(gp.Stage):
    """A belief that is the truth, in the place of all that sees and remembers: for the baselines.

    Inputs: `target` (B, 3) [m]. Outputs: `belief`. Gradients: exact.
    """

    contract = gp.Contract(inputs={"target": "B 3"}, outputs={"belief": BELIEF})

    def forward(self, target: Tensor) -> dict[str, Any]:
        """Believe what is told."""
        return {"belief": {"mean": target, "covariance": target.new_zeros(len(target), 3, 3)}}


class Aim(gp.Stage):
    """The two points where the tool should be next: at the ball or on the way to it, and upright.

    Inputs: `belief`; `tool`, where the two points are, (B, 6) [m]. Outputs: `goal` (B, 6) [m]. Gradients: exact.
    """

    contract = gp.Contract(inputs={"belief": BELIEF, "tool": "B 6"}, outputs={"goal": "B 6"})

    def forward(self, belief: Mapping[str, Tensor], tool: Tensor) -> Tensor:
        """Aim for each world."""
        way = belief["mean"] - tool[:, :3]
        distance = (way.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        return upright(tool[:, :3] + way * (STRIDE / distance).clamp_max(1.0))


def start_belief(batch: int) -> dict[str, Tensor]:
    """What is known before the first image: that the ball is in the working space."""
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    return {
        "mean": (0.5 * (low + high)).repeat(batch, 1),
        "covariance": torch.diag((0.5 * (high - low)).square()).repeat(batch, 1, 1),
    }


class TorqueMPC(gp.Stage):
    """Joint torques by model-predictive control over the arm's own dynamics, with cost weights that are learned.

    Args:
        dt: Duration of a planned step [s].
        horizon: Steps that are planned.
        gradient: Of the plan, as in `planners.MPC`; "implicit" needs float64.
        learn: Whether the weights of the cost are trained.
        iterations: The most iterations in one call.
        tolerance: Where a plan counts as found, relative to its torques.

    Inputs: `state` of the `Arm`; `goal` (B, 6) [m]; `plan` (B, T, 7), the one before. Outputs: `control` (B, 7) [N m],
    on top of gravity; `plan`, for the next call, without gradient; `converged` (B,). Where no plan is found the arm
    brakes, and the next call starts from none. Gradients: of the optimum, in state, goal and weights; "gauss_newton"
    leaves out the curvature of the dynamics.
    """

    contract: gp.Contract
    limits: Tensor

    def __init__(
        self,
        dt: float = 0.08,
        horizon: int = 6,
        gradient: str = "gauss_newton",
        learn: bool = True,
        iterations: int = 8,
        tolerance: float = 5e-2,
    ):
        super().__init__()
        implicit = gradient == "implicit"
        self.mpc = planners.MPC(
            Arm(dt, weightless=True), _running, horizon, [-t for t in TORQUES], TORQUES,
            final=_terminal, targets={"goal": "B 6", "weights": "B 3"}, gradient=gradient,  # type: ignore[arg-type]
            hessian="gauss_newton", second="differences" if implicit else "auto", iterations=iterations,
            tolerance=tolerance,
        )  # fmt: skip
        self.log_weights = nn.Parameter(torch.tensor([100.0, 0.1, 1e-3]).log(), requires_grad=learn)
        self.arm = Arm(1.0, weightless=True)
        self.register_buffer("limits", torch.tensor(TORQUES), persistent=False)
        inner = self.mpc.contract
        self.contract = gp.Contract(
            inputs={"state": Arm.STATE, "goal": "B 6", "plan": inner.inputs["plan"]},
            outputs=dict(inner.outputs),
            gradient=inner.gradient,
            detached=("plan",),
        )

    def forward(self, state: Mapping[str, Tensor], goal: Tensor, plan: Tensor) -> dict[str, Tensor]:
        """Plan for each world."""
        weights = self.log_weights.exp().expand(len(goal), 3)
        found: dict[str, Tensor] = self.mpc(state=state, plan=plan, goal=goal, weights=weights)
        qd = state["qd"]
        braking = sim.inverse_dynamics(self.arm.model, state["q"], qd, -BRAKING_RATE * qd)
        braking = torch.minimum(torch.maximum(braking, -self.limits), self.limits)
        sure = found["converged"][:, None]
        return {
            **found,
            "control": torch.where(sure, found["control"], braking),
            "plan": torch.where(sure[..., None], found["plan"], 0.0),
        }


def _running(state: Mapping[str, Tensor], control: Tensor, goal: Tensor, weights: Tensor) -> Tensor:
    near, still, effort = weights.unbind(-1)
    moving = still * state["qd"].square().sum(-1) + effort * control.square().sum(-1)
    return near * (state["tool"] - goal).square().sum(-1) + moving


def _terminal(state: Mapping[str, Tensor], goal: Tensor, weights: Tensor) -> Tensor:
    near, still, _ = weights.unbind(-1)
    return near * (state["tool"] - goal).square().sum(-1) + 10.0 * still * state["qd"].square().sum(-1)


class TorquePD(gp.Stage):
    """Joint torques that accelerate the tool to its goal like critically damped springs (computed torque).

    Args:
        rate: Of the springs [rad/s]; below 1 / dt.
        learn: Whether the rate is trained.

    Inputs: `state` of the `Arm`; `goal` (B, 6) [m]. Outputs: `control` (B, 7) [N m], on top of gravity, within the
    same limits as that of `TorqueMPC`. Gradients: exact but for the Jacobian, which is held fixed; zero beyond the
    limits.
    """

    contract = gp.Contract(
        inputs={"state": Arm.STATE, "goal": "B 6"}, outputs={"control": f"B {JOINTS}"}, gradient="surrogate"
    )
    limits: Tensor

    def __init__(self, rate: float = 7.0, learn: bool = True):
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(rate).log(), requires_grad=learn)
        self.arm = Arm(1.0, weightless=True)
        self.register_buffer("limits", torch.tensor(TORQUES))

    def forward(self, state: Mapping[str, Tensor], goal: Tensor) -> Tensor:
        """Command each world."""
        q, qd, rate = state["q"], state["qd"], self.log_rate.exp()
        jacobian = self.arm.jacobian(q)
        damped = jacobian @ jacobian.mT + 1e-3 * torch.eye(6, dtype=q.dtype, device=q.device)
        way = (jacobian.mT @ torch.linalg.solve(damped, (goal - state["tool"])[..., None]))[..., 0]
        wanted = rate * rate * way - 2.0 * rate * qd
        torque = sim.inverse_dynamics(self.arm.model, q, qd, wanted)
        return torch.minimum(torch.maximum(torque, -self.limits), self.limits)


def planner(name: str, learn: bool = True, gradient: str = "gauss_newton") -> gp.Stage:
    """Return the planner by name: swapping this stage is one argument."""
    if name == "mpc":
        return TorqueMPC(gradient=gradient, learn=learn)
    if name == "pd":
        return TorquePD(learn=learn)
    raise gp.InputError(f'no planner "{name}"; there are mpc and pd')


def without_torque(q: Tensor, steps: int, dt: float) -> Tensor:
    """Where the two points of the tool are after each step of an arm whose motors are off, (T, B, 6) [m]."""
    state = {"q": q, "qd": torch.zeros_like(q)}
    motion = sim.simulate(load_arm(), state, q.new_zeros(len(q), steps, JOINTS), dt, FALLING_SUBSTEPS)
    return torch.stack([Arm(dt).places(angles)[1] for angles in motion["q"].unbind(1)])


def _centres(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device) + 0.5
