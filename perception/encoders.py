"""Encoders: from images to features, with memory carried explicitly."""

from collections.abc import Sequence

from torch import Tensor, nn

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.stage import Stage


class DepthEncoder(Stage):
    """A small convolutional encoder of a depth image and a motion vector, with recurrent memory (GRU).

    Every convolution halves the image. The memory goes in and comes out, so that a time loop can carry and
    checkpoint it; a zero memory is a fresh start.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        motion: Size of the motion vector.
        features: Size of the feature and of the memory.
        channels: Channels of the convolutions.

    Inputs: `image` (B, 1, H, W), of order one; `motion` (B, motion); `memory` (B, features).
    Outputs: `feature` and the next `memory`, the same tensor, (B, features).
    Gradients: exact.

    Raises:
        InputError: an image too small for the number of convolutions.
    """

    contract: Contract

    def __init__(
        self,
        height: int = 48,
        width: int = 64,
        motion: int = 9,
        features: int = 64,
        channels: Sequence[int] = (16, 32, 32),
    ):
        super().__init__()
        self.contract = Contract(
            inputs={"image": f"B 1 {height} {width}", "motion": f"B {motion}", "memory": f"B {features}"},
            outputs={"feature": f"B {features}", "memory": f"B {features}"},
        )
        if min(height, width) < 2 ** len(channels):
            raise InputError(
                f"{len(channels)} convolutions halve a {height} x {width} image to nothing; "
                "use fewer channels or a larger image"
            )
        layers: list[nn.Module] = []
        before = 1
        for after in channels:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.05)]
            height, width, before = -(-height // 2), -(-width // 2), after
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, features))
        self.motion = nn.Linear(motion, features)
        self.activation = nn.LeakyReLU(0.05)
        self.cell = nn.GRUCell(features, features)

    def forward(self, image: Tensor, motion: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Encode one image per world and update its memory."""
        seen = self.activation(self.image(image) + self.motion(motion))
        memory = self.cell(seen, memory)
        return memory, memory
