"""A second place for kept states, beside the memory that the loop runs in: files, or the host of a GPU."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import safetensors.torch
import torch
from torch import Tensor

from gradpath.errors import GradpathError, InputError
from gradpath.replay import Snapshot


class Store(Protocol):
    """Where states are put until the backward pass comes back to them."""

    def put(self, step: int, snapshot: Snapshot) -> None:
        """Write the state that enters a step."""

    def get(self, step: int) -> Snapshot:
        """Read it back, on the devices where it was."""

    def drop(self, step: int) -> None:
        """Delete it."""

    def close(self) -> None:
        """Delete everything."""


class _OnHost(NamedTuple):
    """A tensor that was copied to the host, and where it belongs."""

    copy: Tensor
    device: torch.device


class HostStore:
    """States in the memory of the host, pinned, so that copies from and to a GPU do not wait for each other."""

    def __init__(self) -> None:
        self._states: dict[int, Snapshot] = {}

    def put(self, step: int, snapshot: Snapshot) -> None:
        """Copy a state to the host; what lies there already is only held."""

        def away(tensor: Tensor) -> Any:
            if tensor.device.type == "cpu":
                return tensor
            copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
            return _OnHost(copy.copy_(tensor, non_blocking=True), tensor.device)

        self._states[step] = snapshot.replaced(Tensor, away)

    def get(self, step: int) -> Snapshot:
        """Copy a state back to its devices."""
        return self._states[step].replaced(_OnHost, lambda kept: kept.copy.to(kept.device, non_blocking=True))

    def drop(self, step: int) -> None:
        """Let go of a state."""
        del self._states[step]

    def close(self) -> None:
        """Let go of everything."""
        self._states.clear()


class _InFile(NamedTuple):
    """A tensor that was written to a file: what it takes to make it again."""

    name: str
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class FileStore:
    """States in files, one each, in a folder of their own that is removed with the store.

    Args:
        folder: Where that folder is made; it is created where it does not exist.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        try:
            os.makedirs(folder, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(
                prefix="states-", dir=folder, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise InputError(
                f"states cannot be stored in {os.fspath(folder)!r} ({error}); name a folder that can be written to"
            ) from error
        self._states: dict[int, Snapshot] = {}

    def _path(self, step: int) -> Path:
        return Path(self._folder.name, f"{step}.safetensors")

    def put(self, step: int, snapshot: Snapshot) -> None:
        """Write a state.

        Raises:
            GradpathError: it cannot be written, because the disk is full, say.
        """
        tensors: dict[str, Tensor] = {}

        def away(tensor: Tensor) -> Any:
            name = str(len(tensors))
            tensors[name] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            return _InFile(name, tensor.size(), tensor.stride(), tensor.dtype, tensor.device)

        self._states[step] = snapshot.replaced(Tensor, away)
        try:
            safetensors.torch.save_file(tensors, self._path(step))
        except Exception as error:
            raise GradpathError(
                f"the state that enters step {step} could not be written to {self._folder.name}: {error}; "
                "make room there, or name another folder"
            ) from error

    def get(self, step: int) -> Snapshot:
        """Read a state.

        Raises:
            GradpathError: its file is gone or damaged.
        """
        try:
            tensors = safetensors.torch.load_file(self._path(step))
        except Exception as error:
            raise GradpathError(
                f"the state that enters step {step} could not be read from {self._folder.name}: {error}; its files "
                "must stay until the backward pass is over"
            ) from error

        def back(kept: _InFile) -> Tensor:
            made = torch.empty_strided(kept.size, kept.stride, dtype=kept.dtype, device=kept.device)
            return made.copy_(tensors[kept.name].view(kept.dtype).view(kept.size))

        return self._states[step].replaced(_InFile, back)

    def drop(self, step: int) -> None:
        """Delete the file of a state."""
        del self._states[step]
        self._path(step).unlink(missing_ok=True)

    def close(self) -> None:
        """Delete all files and their folder."""
        self._states.clear()
        self._folder.cleanup()
