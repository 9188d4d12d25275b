"""Sensor models: what a real sensor makes of an ideal measurement."""

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.stage import Stage


class DepthSensor(Stage):
    """A depth sensor as networks like to see it: inverse depth between range limits, with noise of its own scale.

    The output is `reference / depth` with the depth limited to the range: 1 at the reference distance, more for what
    is nearer. Stereo and structured light measure disparity, so noise that is uniform in inverse depth grows with the
    square of the distance, as theirs does.

    Args:
        min_range: Nearest measurable depth [m].
        max_range: Farthest measurable depth [m].
        reference: The depth [m] that gives 1; the distance at which things begin to matter.
        noise: Standard deviation of the noise, in units of the output; the relative error at the reference.

    Inputs: `depth` [m] (B, 1, H, W); optional `generator`, without which there is no noise.
    Outputs: `image` (B, 1, H, W).
    Gradients: exact; zero where the depth is out of range.

    Raises:
        InputError: a range that is empty or not positive, or negative noise.
    """

    contract = Contract(inputs={"depth": "B 1 H W", "generator": "generator"}, outputs={"image": "B 1 H W"})

    def __init__(
        self, min_range: float = 0.3, max_range: float = 12.0, reference: float = 3.0, noise: float = 0.02
    ):
        super().__init__()
        if not (0.0 < min_range < max_range and reference > 0.0 and noise >= 0.0):
            raise InputError(
                f"a depth sensor needs 0 < min_range < max_range, reference > 0 and noise >= 0, got "
                f"min_range={min_range}, max_range={max_range}, reference={reference}, noise={noise}"
            )
        self.min_range, self.max_range, self.reference, self.noise = min_range, max_range, reference, noise

    def forward(self, depth: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Measure one image per world."""
        image = self.reference / depth.clamp(self.min_range, self.max_range)
        if generator is None or self.noise == 0.0:
            return image
        noise = torch.randn(depth.shape, generator=generator, dtype=depth.dtype, device=depth.device)
        return image + self.noise * noise


class Blindfold(Stage):
    """A depth image in which there is nothing to see, in the place of one in which there is.

    To find out what a policy takes from its camera: an intervention, not a sensor.

    Args:
        max_range: The depth shown everywhere [m].

    Inputs: `depth` (B, 1, H, W). Outputs: `depth` (B, 1, H, W), constant. Gradients: none.
    """

    contract = Contract(inputs={"depth": "B 1 H W"}, outputs={"depth": "B 1 H W"}, gradient="none")

    def __init__(self, max_range: float = 12.0):
        super().__init__()
        self.max_range = max_range

    def forward(self, depth: Tensor) -> Tensor:
        """Return a constant image."""
        return torch.full_like(depth, self.max_range)
