"""What do instances cost that no camera sees? `render.DepthCamera`, with and without leaving them out.

OMP_NUM_THREADS=1 python benchmarks/bench_culling.py [--repeats 9]

One world, 64 x 48 pixels, four icospheres in view and others behind the camera; depth, forward and backward to all
poses, in milliseconds, the median.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from gradpath import geometry, render
from gradpath.meshes import TriangleMesh

SEEN = 4
SIZES = [(320, 28), (5120, 0), (5120, 28), (5120, 60)]  # faces of each, instances behind the camera


class _Whole(render.Scene):
    """A scene that leaves nothing out."""

    def seen_part(self, *_: object) -> None:
        """Nothing to leave out."""


def milliseconds(scene: render.Scene, repeats: int) -> float:
    """The median time of forward and backward."""
    camera = render.DepthCamera(scene, height=48, width=64)
    generator = torch.Generator().manual_seed(0)
    count = scene.instances
    behind = torch.arange(count)[:, None] >= SEEN
    where = torch.rand(1, count, 3, generator=generator) * torch.tensor([4.0, 4.0, 3.0])
    where = where + torch.tensor([3.0, -2.0, -1.5]) - 12.0 * behind * torch.tensor([1.0, 0.0, 0.0])
    poses = geometry.pose(where, geometry.quat_identity(1, count)).requires_grad_()
    scale = torch.full((1, count, 3), 0.4)

    def step() -> Tensor:
        depth, _ = camera(geometry.pose_identity(1), {"pose": poses, "scale": scale})
        return torch.autograd.grad(depth.sum(), poses)[0]

    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        step()
        times += [time.perf_counter() - start] if number >= 2 else []
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    print(f"{'faces':>6}{'seen':>6}{'behind':>8}{'left out ms':>13}{'all ms':>9}{'ratio':>7}")
    for faces, behind in SIZES:
        mesh = TriangleMesh.icosphere(2 if faces == 320 else 4)
        fast, slow = (milliseconds(kind([mesh], [SEEN + behind]), repeats) for kind in (render.Scene, _Whole))
        print(f"{faces:>6}{SEEN:>6}{behind:>8}{fast:>13.1f}{slow:>9.1f}{slow / fast:>7.1f}")


if __name__ == "__main__":
    main()
