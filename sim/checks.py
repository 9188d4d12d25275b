"""What the functions of models refuse: other shapes, dtypes and devices, numbers that are not finite, no rotations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError
from gradpath.geometry import POSE_TOLERANCE
from gradpath.sim.model import JointKind, Model

Expected = Mapping[
    str, tuple[Any, tuple[int | str, ...]]
]  # name to value (None: not given) and axes after the worlds


def check_inputs(model: Model, function: str, given: Expected) -> None:
    """Refuse inputs that do not fit the model or each other; `q` comes first and says worlds, dtype and device.

    Values are not looked at on a GPU, because the answer would have to be waited for.

    Raises:
        ShapeError: names the input, with expected and given shape, dtype or device.
        InputError: names the input and the world of a number that is not finite or a quaternion that is no rotation.
    """
    values = {name: value for name, (value, _) in given.items() if value is not None}
    for name, value in values.items():
        _check_tensor(model, function, name, value, given[name][1], values["q"])
    if values["q"].is_cuda:
        return
    with torch.no_grad():
        # One number for all: zero times what is not finite is NaN.
        if not bool(sum((0.0 * value).sum() for value in values.values()) == 0.0):
            _name_what_is_not_finite(function, values)
        _check_quaternions(model, function, values["q"])


def check_rows(model: Model, function: str, params: Tensor, worlds: int) -> None:
    """Refuse packed parameters for another number of worlds."""
    if len(params) not in (1, worlds):
        raise ShapeError(
            f"{function}: model {model.name!r} has parameters for {len(params)} worlds, q is for {worlds}; give one "
            "row per world, or one for all"
        )


def _check_tensor(
    model: Model, function: str, name: str, value: Any, axes: tuple[int | str, ...], q: Tensor
) -> None:
    where = f"{function}: {name} of model {model.name!r}"
    if not isinstance(value, Tensor):
        raise ShapeError(f"{where} is a {type(value).__name__}; pass a tensor")
    worlds = "B" if value is q else len(q)
    fits = value.ndim == 1 + len(axes) and (value is q or len(value) == worlds)
    if not fits or any(isinstance(a, int) and a != s for a, s in zip(axes, value.shape[1:], strict=True)):
        expected = ", ".join(map(str, (worlds, *axes)))
        raise ShapeError(
            f"{where}: expected shape ({expected}), got {tuple(value.shape)}; the first axis is the worlds"
        )
    if (
        value.dtype not in (torch.float32, torch.float64)
        or value.dtype != q.dtype
        or value.device != q.device
    ):
        raise ShapeError(
            f"{where} is {value.dtype} on {value.device}, and q is {q.dtype} on {q.device}; all are float32 or float64 "
            "on one device"
        )


def _name_what_is_not_finite(function: str, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        bad = (~torch.isfinite(value)).nonzero()
        if len(bad):
            world = int(bad[0, 0])
            raise InputError(
                f"{function}: {name} of world {world} is {value[world].tolist()}; find the step or the weights it came "
                "from"
            )


def _check_quaternions(model: Model, function: str, q: Tensor) -> None:
    for joint in model.joints:
        if joint.kind not in (JointKind.BALL, JointKind.FREE):
            continue
        end = joint.q_start + joint.kind.coordinates
        quaternion = q[:, end - 4 : end]
        bad = ((torch.linalg.vector_norm(quaternion, dim=-1) - 1).abs() > POSE_TOLERANCE).nonzero()
        if len(bad):
            world = int(bad[0, 0])
            raise InputError(
                f"{function}: the quaternion of joint {joint.name!r} in world {world} is {quaternion[world].tolist()}; "
                "it needs norm 1, and the identity is [0, 0, 0, 1]"
            )


def check_step(dt: float, substeps: int) -> None:
    """Refuse a duration [s] or a number of substeps that is not positive."""
    if not dt > 0:
        raise InputError(f"dt: expected a positive duration in seconds, got {dt}")
    if substeps < 1:
        raise InputError(f"substeps: expected at least 1, got {substeps}")
