"""Maps of pillars for the navigation task, their distance fields, and the shortest path by A* with the full map."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LENGTH = 12.0  # of a map, along x [m]
HALF_WIDTH = 5.0  # of the grid, along y [m]
PILLARS = 7
RADII = (0.3, 0.7)  # of the pillars [m]
GAP = 1.2  # between pillars, at least [m]
ROBOT = 0.25  # radius of the robot [m]
SPACING = 0.1  # of the grid [m]
ORIGIN = (0.0, -HALF_WIDTH)  # of the grid [m]


@dataclass(frozen=True)
class Maps:
    """A batch of maps.

    Attributes:
        centres: Of the pillars [m], (B, I, 2).
        radii: [m], (B, I).
        start: [m], (B, 2).
        goal: [m], (B, 2).
    """

    centres: Tensor
    radii: Tensor
    start: Tensor
    goal: Tensor

    @property
    def obstacles(self) -> dict[str, Tensor]:
        """The pillars as a camera takes them, one metre high."""
        batch, count = self.radii.shape
        pose = torch.zeros(batch, count, 7)
        pose[..., :2], pose[..., 2], pose[..., 6] = self.centres, 0.5, 1.0
        scale = torch.stack([self.radii, self.radii, torch.full_like(self.radii, 0.5)], -1)
        return {"pose": pose, "scale": scale}

    def pick(self, index: Tensor) -> Maps:
        """Return some of the maps, by number or by a mask."""
        return Maps(*(value[index] for value in (self.centres, self.radii, self.start, self.goal)))

    def clearance(self, points: Tensor) -> Tensor:
        """Exact distance [m] from points (P, B, 2) to the nearest pillar, (P, B)."""
        return ((points[..., None, :] - self.centres).norm(dim=-1) - self.radii).amin(-1)

    def field(self) -> Tensor:
        """Distance [m] at the nodes of the grid, (B, n1, n2)."""
        x = torch.arange(round(LENGTH / SPACING) + 1) * SPACING + ORIGIN[0]
        y = torch.arange(round(2 * HALF_WIDTH / SPACING) + 1) * SPACING + ORIGIN[1]
        nodes = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 1, 2)
        every = self.clearance(nodes.expand(-1, len(self.radii), 2))
        return every.T.reshape(-1, len(x), len(y))


def draw_maps(batch: int, seed: tuple[int, ...]) -> Maps:
    """Draw maps of pillars that leave gaps of at least 1.2 m; the same seed gives the same maps."""
    rng = np.random.default_rng(seed)
    centres, radii = np.zeros((batch, PILLARS, 2)), np.zeros((batch, PILLARS))
    for sample in range(batch):
        placed = 0
        while placed < PILLARS:
            radius = rng.uniform(*RADII)
            centre = np.array([rng.uniform(2.0, LENGTH - 2.0), rng.uniform(-4.0, 4.0)])
            apart = (
                np.linalg.norm(centres[sample, :placed] - centre, axis=-1) - radii[sample, :placed] - radius
            )
            if (apart >= GAP).all() or rng.uniform() < 1e-3:  # a full map must not keep it for ever
                centres[sample, placed], radii[sample, placed] = centre, radius
                placed += 1
    ends = [np.stack([np.full(batch, x), rng.uniform(-2.0, 2.0, batch)], -1) for x in (0.5, LENGTH - 0.5)]
    return Maps(*(torch.tensor(value, dtype=torch.float32) for value in (centres, radii, *ends)))


def shortest_path(field: Tensor, start: Tensor, goal: Tensor, margin: float = ROBOT) -> np.ndarray | None:
    """Return the waypoints (N, 2) [m] of the shortest path that keeps a margin, or None where there is no free path.

    A* on the grid with eight neighbours, then shortened wherever two of its nodes see each other.
    """
    distance = field.numpy()
    free = distance > margin
    origin = np.array(ORIGIN)
    first, last = (tuple(np.rint((p.numpy() - origin) / SPACING).astype(int)) for p in (start, goal))
    if not (free[first] and free[last]):
        return None
    moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    cost, came, queue = {first: 0.0}, {first: first}, [(0.0, first)]
    while queue:
        _, node = heapq.heappop(queue)
        if node == last:
            break
        for i, j in moves:
            after = (node[0] + i, node[1] + j)
            if not (0 <= after[0] < free.shape[0] and 0 <= after[1] < free.shape[1] and free[after]):
                continue
            price = cost[node] + math.hypot(i, j)
            if price < cost.get(after, math.inf):
                cost[after], came[after] = price, node
                heapq.heappush(queue, (price + math.dist(after, last), after))
    if last not in came:
        return None
    nodes = [last]
    while nodes[-1] != first:
        nodes.append(came[nodes[-1]])
    return _shortened(np.array(nodes[::-1]) * SPACING + origin, distance, margin)


def _shortened(path: np.ndarray, distance: np.ndarray, margin: float) -> np.ndarray:
    """Leave out waypoints that can be cut off in a straight line."""
    kept, at = [0], 0
    while at < len(path) - 1:
        following = len(path) - 1
        while following > at + 1 and not _sees(path[at], path[following], distance, margin):
            following -= 1
        kept.append(following)
        at = following
    return path[kept]


def _sees(a: np.ndarray, b: np.ndarray, distance: np.ndarray, margin: float) -> bool:
    share = np.linspace(0.0, 1.0, max(2, int(np.linalg.norm(b - a) / (0.5 * SPACING))))[:, None]
    node = np.rint(((1 - share) * a + share * b - ORIGIN) / SPACING).astype(int)
    return bool((distance[node[:, 0], node[:, 1]] > margin).all())


def path_length(path: np.ndarray) -> float:
    """Return the length [m] of a path (N, 2)."""
    return float(np.linalg.norm(np.diff(path, axis=0), axis=-1).sum())
