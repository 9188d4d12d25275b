"""Image encoders of several sizes: a compact convolutional net, a ResNet, a vision transformer; and recurrent memory.

Norms are over groups of channels, not over the batch: worlds do not influence each other, and training and deployment
are the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gradpath.contract import Contract
from gradpath.errors import InputError, LoadError
from gradpath.stage import Stage


class ConvEncoder(Stage):
    """A compact convolutional encoder; every convolution halves the image.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        channels_in: 3 for colour, 1 for depth.
        features: Size of the feature.
        channels: Channels of the convolutions, each a multiple of 8.
        norm: Group norm after each convolution. It takes out the scale of an image: right for colour under changing
            light; for depth it is how near things are.

    Inputs: `image` (B, channels_in, H, W). Outputs: `feature` (B, features). Gradients: exact.

    Raises:
        InputError: an image too small for the number of convolutions, or channels that do not fall into groups of 8.
    """

    contract: Contract

    def __init__(
        self,
        height: int = 48,
        width: int = 64,
        channels_in: int = 3,
        features: int = 64,
        channels: Sequence[int] = (16, 32, 32),
        norm: bool = True,
    ):
        super().__init__()
        if min(height, width) < 2 ** len(channels) or any(c % 8 for c in channels):
            raise InputError(
                f"ConvEncoder: {len(channels)} convolutions need an image of {2 ** len(channels)} pixels and "
                f"multiples of 8 channels, got {height} x {width} and {list(channels)}"
            )
        self.contract = _contract(channels_in, f"{height} {width}", features)
        layers: list[nn.Module] = []
        before = channels_in
        for after in channels:
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=not norm),
                nn.GroupNorm(after // 8, after) if norm else nn.Identity(),
                nn.ReLU(),
            ]
            height, width, before = -(-height // 2), -(-width // 2), after
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, features))

    def forward(self, image: Tensor) -> Tensor:
        """Encode one image per world."""
        return self.net(image)


class ResNetEncoder(Stage):
    """A residual network, by default of the size of ResNet-18, with group norm, for images of any size.

    Args:
        channels_in: 3 for colour, 1 for depth.
        features: Size of the feature.
        channels: Channels of the four levels.
        blocks: Residual blocks of each level.

    Inputs: `image` (B, channels_in, H, W). Outputs: `feature` (B, features). Gradients: exact.

    References: He et al. 2016, Deep Residual Learning; Wu, He 2018, Group Normalization.
    """

    contract: Contract

    def __init__(
        self,
        channels_in: int = 3,
        features: int = 256,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
    ):
        super().__init__()
        if len(channels) != len(blocks) or not channels or any(c % 8 for c in channels) or min(blocks) < 1:
            raise InputError(
                "ResNetEncoder: as many numbers of blocks as of channels, channels multiples of 8, got "
                f"{list(channels)} and {list(blocks)}"
            )
        self.contract = _contract(channels_in, "H W", features)
        self.stem = nn.Sequential(
            nn.Conv2d(channels_in, channels[0], 7, stride=2, padding=3, bias=False),
            _norm(channels[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        levels: list[nn.Module] = []
        before = channels[0]
        for level, (after, count) in enumerate(zip(channels, blocks, strict=True)):
            for block in range(count):
                levels.append(_Residual(before, after, stride=2 if level and not block else 1))
                before = after
        self.levels = nn.Sequential(*levels)
        self.head = nn.Linear(before, features)

    def forward(self, image: Tensor) -> Tensor:
        """Encode one image per world."""
        return self.head(self.levels(self.stem(image)).mean((-1, -2)))


class _Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = _norm(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = _norm(after)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), _norm(after))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions find to what went in."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.around(x))


class VisionTransformer(Stage):
    """A small vision transformer.

    Args:
        height: Rows of the image, a multiple of `patch`.
        width: Columns of the image, a multiple of `patch`.
        channels_in: 3 for colour, 1 for depth.
        features: Size of the feature.
        patch: Side of the square patches [px].
        size: Size of a token, a multiple of `heads`.
        depth: Blocks.
        heads: Heads of the attention.

    Inputs: `image` (B, channels_in, H, W). Outputs: `feature` (B, features). Gradients: exact.

    Raises:
        InputError: sizes that do not divide.

    References: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words.
    """

    contract: Contract

    def __init__(
        self,
        height: int = 48,
        width: int = 64,
        channels_in: int = 3,
        features: int = 64,
        patch: int = 8,
        size: int = 96,
        depth: int = 4,
        heads: int = 4,
    ):
        super().__init__()
        if height % patch or width % patch or size % heads or depth < 1:
            raise InputError(
                f"VisionTransformer: patches of {patch} divide the image and {heads} heads the size, got "
                f"{height} x {width} and {size}"
            )
        self.contract = _contract(channels_in, f"{height} {width}", features)
        self.patches = nn.Conv2d(channels_in, size, patch, stride=patch)
        tokens = (height // patch) * (width // patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, tokens, size))
        layers = [
            nn.TransformerEncoderLayer(
                size, heads, 4 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, features)

    def forward(self, image: Tensor) -> Tensor:
        """Encode one image per world."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))


class Memory(Stage):
    """Recurrent memory (GRU) whose state goes in and comes out, for a time loop to carry.

    Args:
        features: Size of the feature that comes in.
        size: Size of the memory; that of the feature by default.

    Inputs: `feature` (B, features); `memory` (B, size), zero at the start.
    Outputs: `feature` and the next `memory`, the same tensor, (B, size). Gradients: exact.
    """

    contract: Contract

    def __init__(self, features: int = 64, size: int | None = None):
        super().__init__()
        size = features if size is None else size
        self.contract = Contract(
            inputs={"feature": f"B {features}", "memory": f"B {size}"},
            outputs={"feature": f"B {size}", "memory": f"B {size}"},
        )
        self.cell = nn.GRUCell(features, size)

    def forward(self, feature: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take one feature per world into its memory."""
        memory = self.cell(feature, memory)
        return memory, memory


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fill a module with pretrained weights from a local safetensors file, whose names and shapes are the module's.

    Raises:
        LoadError: the file is missing or damaged, or does not fit; says which name.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"{path} cannot be read as safetensors ({error}); export the weights again"
        ) from error
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in weights or weights[name].shape != tensor.shape:
            got = tuple(weights[name].shape) if name in weights else "none"
            raise LoadError(
                f'{path}: expected "{name}" of shape {tuple(tensor.shape)}, got {got}; the file is of another network'
            )
    extra = sorted(set(weights) - set(own))
    if extra:
        raise LoadError(
            f'{path} holds "{extra[0]}", which the network has not; the file is of another network'
        )
    module.load_state_dict(weights)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 8), channels)


def _contract(channels: int, size: str, features: int) -> Contract:
    return Contract(inputs={"image": f"B {channels} {size}"}, outputs={"feature": f"B {features}"})
