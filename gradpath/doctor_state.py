"""What runs change and how it is put back; copies of values, and random numbers of one precision in another."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradpath import capture, tree
from gradpath.pipeline import Pipeline


class State:
    """What runs may change outside of what they return."""

    def __init__(self, pipeline: Pipeline):
        found = capture.find(pipeline)
        self.generators = [(g, g.get_state()) for g in found.generators.values()]
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.numpy, self.python = np.random.get_state(), random.getstate()
        self.modules = list(pipeline.modules())
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in pipeline.buffers()]
        self.attributes = [
            {key: (value, _frozen(value)) for key, value in plain_attributes(module)}
            for module in self.modules
        ]

    def restore(self, hidden: bool) -> None:
        """Put everything back; what is hidden only where asked for."""
        for generator, state in self.generators:
            generator.set_state(state)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if hidden:
            np.random.set_state(self.numpy)
            random.setstate(self.python)
        with torch.no_grad():
            for buffer, value in self.buffers:
                _write_back(buffer, value)
        for module, before in zip(self.modules, self.attributes, strict=True):
            for key, value in plain_attributes(module):
                if key not in before and isinstance(value, Tensor):
                    object.__delattr__(module, key)
            for key, (value, frozen) in before.items():
                if hidden or isinstance(value, Tensor | None):
                    _thaw(module, key, value, frozen)


def plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the attributes of a module that may hold a state: tensors, numbers, None, lists, dicts, deques."""
    kinds = (Tensor, int, float, list, dict, deque, type(None))
    own = [(key, value) for key, value in vars(module).items() if isinstance(value, kinds)]
    return [(key, value) for key, value in own if key not in _TORCH_ATTRIBUTES and key != "config"]


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, (list, dict, deque)) else value


def _thaw(module: nn.Module, key: str, value: Any, frozen: Any) -> None:
    """Put an attribute back: the same object, with what was in it."""
    if isinstance(value, Tensor):
        with torch.no_grad():
            _write_back(value, frozen)
    elif isinstance(value, (list, dict, deque)) and _changed(value, frozen):
        value.clear()
        value.update(frozen) if isinstance(value, dict) else value.extend(frozen)
    if vars(module).get(key) is not value:
        object.__setattr__(module, key, value)


def _changed(value: Any, before: Any) -> bool:
    """Whether a container holds other objects than before."""
    now, then = (list(c.items() if isinstance(c, dict) else enumerate(c)) for c in (value, before))
    pairs = zip(now, then, strict=False)
    return len(now) != len(then) or any(a[0] != b[0] or a[1] is not b[1] for a, b in pairs)


def _write_back(value: Tensor, before: Tensor) -> None:
    """Put the numbers of a tensor back; one that is as it was is not written to, for a graph may hold it."""
    if not torch.equal(value, before):
        value.copy_(before)


def copied(leaf: Any) -> Any:
    """Return a copy of a tensor or a generator, in its state; anything else as it is."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    if isinstance(leaf, torch.Generator):
        other = torch.Generator(leaf.device)
        other.set_state(leaf.get_state())
        return other
    return leaf


def doubled(leaf: Any) -> Any:
    """Return a floating tensor in double precision; anything else as it is."""
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.detach().double().requires_grad_(leaf.requires_grad)
    return leaf


class SingleDraws(TorchDispatchMode):
    """Within it, random numbers of double precision are those that single precision would have drawn.

    So a model in double precision sees the noise of the one in single precision, digit for digit.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        into = args[0] if args and isinstance(args[0], Tensor) else None
        if kwargs.get("dtype") != torch.float64 and (into is None or into.dtype != torch.float64):
            return func(*args, **kwargs)
        if kwargs.get("dtype") == torch.float64:
            kwargs["dtype"] = torch.float32
        single = tree.map_leaves(_singled, args)
        drawn = func(*single, **kwargs)
        if into is not None and drawn is single[0]:
            return into.copy_(drawn)  # it was filled in place
        return tree.map_leaves(doubled, drawn)


def _singled(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.float64 else leaf
