"""Counts the bytes of tensors, storage by storage, while torch works."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradpath import tree


class Meter(TorchDispatchMode):
    """Counts the memory of tensors that are made while it is entered, until they are let go.

    ```python
    with Meter() as meter:
        loss = model(x).sum()
        loss.backward()
    meter.peak     # bytes, beyond what existed before
    ```

    Storages are counted once, however many tensors look at them, on any device. Not seen: memory that torch does
    not know of (arrays that a kernel library allocates for itself), and what an operation needs inside itself. It
    costs some microseconds for each operation. It may be left and entered again: what is let go in between is
    noticed, what is made in between is not.

    Attributes:
        live: Bytes that exist now.
        peak: The largest `live` so far, or since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._ignore = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in _storages(tree.flatten(result)[0]):
            if storage._cdata not in self._known:
                given = _storages(tree.flatten((args, kwargs))[0])
                self._note(storage, foreign=any(other._cdata == storage._cdata for other in given))
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor whose making torch did not tell of, such as the state of a generator."""
        for storage in _storages([tensor]):
            if storage._cdata not in self._known:
                self._note(storage, foreign=False)

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """Do not count what is made within: it belongs to someone else."""
        before, self._ignore = self._ignore, True
        try:
            yield
        finally:
            self._ignore = before

    def _note(self, storage: torch.UntypedStorage, foreign: bool) -> None:
        """Count a storage, unless it was there before or belongs to someone else."""
        size = 0 if foreign or self._ignore else storage.nbytes()
        self._known[storage._cdata] = weakref.ref(storage, self._gone(storage._cdata, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> Callable[[Any], None]:
        def gone(reference: Any) -> None:
            if self._known.get(key) is reference:
                del self._known[key]
            self.live -= size

        return gone


def storage_bytes(tensors: Iterable[Any], beside: Iterable[Any] = ()) -> int:
    """The bytes behind some tensors, each storage once, without those that are also behind others."""
    others = {storage._cdata for storage in _storages(beside)}
    return sum({s._cdata: s.nbytes() for s in _storages(tensors) if s._cdata not in others}.values())


def _storages(leaves: Iterable[Any]) -> list[torch.UntypedStorage]:
    found = []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            found.append(leaf.untyped_storage())
    return found
