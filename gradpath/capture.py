"""What a step reads besides its arguments: tensors and generators in closures, modules, globals, containers.

`find` looks for them before a time loop runs; `check_graph` looks at the graph of a step that ran and refuses
a tensor that `find` could not see, so that no gradient is lost.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from gradpath.errors import CaptureError

Put = Callable[[Any], None]
"""Writes another value into the place where one was found."""

_FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "warp", "builtins", "__builtin__"}
"""Packages whose functions and objects hold no tensor of the user."""

_LEAF_NODE: Any = type(get_gradient_edge(torch.empty(0, requires_grad=True)).node)
"""The type of the graph node at a leaf; asking a node for its name takes longer than all the rest of a walk."""

_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, type)


_PLAIN = frozenset((str, bytes, int, float, complex, bool, type(None)))
"""Exact types of the items of tables."""


@dataclass
class Captured:
    """The tensors, generators and modules that a step can reach.

    Tensors are by `id`; `scratch` are those that lie in plain attributes of objects, which may use them as such.

    A leaf tensor is used where it is. A tensor with a history (a goal that a network made) must not be: the
    backward pass of one step would run on into that history. `substituted` puts a leaf in its place.
    """

    tensors: dict[int, Tensor] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    scratch: set[int] = field(default_factory=set)
    places: dict[int, list[Put | None]] = field(default_factory=dict)
    generators: dict[int, torch.Generator] = field(default_factory=dict)
    modules: dict[int, nn.Module] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Tensor]:
        """Tensors that require a gradient and have no history: parameters, as a rule."""
        return [t for t in self.tensors.values() if t.requires_grad and t.grad_fn is None]

    @property
    def histories(self) -> list[Tensor]:
        """Tensors that were computed from tensors that require a gradient."""
        return [t for t in self.tensors.values() if t.grad_fn is not None]

    @contextmanager
    def substituted(self, histories: list[Tensor], leaves: list[Tensor]) -> Iterator[None]:
        """Let the step see `leaves` where it would see `histories`."""
        try:
            for old, new in zip(histories, leaves, strict=True):
                self._put(old, new)
            yield
        finally:
            for old in histories:
                self._put(old, old)

    def _put(self, key: Tensor, value: Tensor) -> None:
        for put in self.places[id(key)]:
            if put is not None:
                put(value)


def find(step: Any, *others: Any) -> Captured:
    """Find what a step captures: in modules, objects, containers, closures, partials, methods and globals.

    Args:
        step: The step, called so in errors.
        others: Objects that it is given beside trees of tensors.
    """
    finder = _Finder()
    finder.visit(step, "step", None)
    for other in others:
        finder.visit(other, type(other).__name__, None)
    return finder.found


class _Finder:
    """A walk over everything that can be reached from a step, each object once."""

    def __init__(self) -> None:
        self.found = Captured()
        self.seen: dict[int, Any] = {}  # holds the objects too: an id is only good while its object lives
        self.attributes = 0  # how many plain attributes lie between the step and here

    def visit(self, value: Any, name: str, put: Put | None) -> None:
        if isinstance(value, _ATOMS):
            return
        if isinstance(value, Tensor):
            if self.attributes and id(value) not in self.found.tensors:
                self.found.scratch.add(id(value))
            self.found.tensors.setdefault(id(value), value)
            self.found.names.setdefault(id(value), name)
            self.found.places.setdefault(id(value), []).append(put)
        elif isinstance(value, (list, tuple)) and _PLAIN.issuperset(map(type, value)):
            return  # a table of a million numbers is looked through, not walked
        elif isinstance(value, tuple):
            self._visit_tuple(value, name, put)
        elif id(value) not in self.seen:
            self.seen[id(value)] = value
            self._visit_object(value, name)

    def _visit_object(self, value: Any, name: str) -> None:
        if isinstance(value, torch.Generator):
            self.found.generators[id(value)] = value
        elif isinstance(value, nn.Module):
            self.found.modules[id(value)] = value
            self._visit_attributes(value, name)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value, name)
        elif isinstance(value, types.MethodType):
            self.visit(value.__self__, name, None)
            self.visit(value.__func__, name, None)
        elif isinstance(value, functools.partial):
            for item in (value.func, *value.args, *value.keywords.values()):
                self.visit(item, name, None)
        elif isinstance(value, dict):
            self._visit_dict(value, name)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                self.visit(item, f"{name}[{i}]", functools.partial(value.__setitem__, i))
        elif isinstance(value, (set, frozenset)):
            for item in value:
                self.visit(item, name, None)
        elif isinstance(value, types.SimpleNamespace) or not _is_foreign(type(value).__module__):
            self._visit_attributes(value, name)

    def _visit_tuple(self, value: tuple, name: str, put: Put | None) -> None:
        """Visit the items; replacing one puts another tuple in the place of this one."""
        current = list(value)

        def put_item(i: int, item: Any) -> None:
            assert put is not None
            current[i] = item
            put(type(value)(*current) if hasattr(value, "_fields") else tuple(current))

        for i, item in enumerate(value):
            self.visit(item, f"{name}[{i}]", None if put is None else functools.partial(put_item, i))

    def _visit_dict(self, value: dict, name: str) -> None:
        for key, item in value.items():
            self.visit(item, f"{name}[{key!r}]", functools.partial(value.__setitem__, key))

    def _visit_attributes(self, value: Any, name: str) -> None:
        for key, item in getattr(value, "__dict__", {}).items():
            if key in ("_parameters", "_buffers", "_modules"):
                for part, inner in item.items():
                    self.visit(inner, f"{name}.{part}", functools.partial(item.__setitem__, part))
            else:
                self._visit_attribute(value, key, item, name)
        for cls in type(value).__mro__:
            for key in getattr(cls, "__slots__", ()):
                if key not in ("__dict__", "__weakref__") and hasattr(value, key):
                    self._visit_attribute(value, key, getattr(value, key), name)

    def _visit_attribute(self, owner: Any, key: str, value: Any, name: str) -> None:
        self.attributes += 1
        self.visit(value, f"{name}.{key}", functools.partial(_set_attribute, owner, key))
        self.attributes -= 1

    def _visit_function(self, function: types.FunctionType, name: str) -> None:
        if _is_foreign(function.__module__):
            return
        for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # a name that is not bound yet
                continue
            self.visit(content, free, functools.partial(setattr, cell, "cell_contents"))
        self.visit(function.__defaults__, name, functools.partial(setattr, function, "__defaults__"))
        self.visit(function.__kwdefaults__, name, None)
        self._visit_dict(function.__dict__, name)
        used = _names_used(function.__code__)
        for key in used & function.__globals__.keys():
            value = function.__globals__[key]
            if not isinstance(value, types.ModuleType):
                self.visit(value, key, functools.partial(function.__globals__.__setitem__, key))
            elif not _is_foreign(value.__name__):
                for part in used & vars(value).keys():
                    if not isinstance(vars(value)[part], types.ModuleType):
                        put = functools.partial(vars(value).__setitem__, part)
                        self.visit(vars(value)[part], f"{key}.{part}", put)


def check_graph(outputs: Iterable[Tensor], known: set[int], histories: list[Tensor], step: int) -> set[int]:
    """Follow the graph of a step back to its leaves and refuse one that is not known.

    A leaf that no Python object holds was made inside the step and has no gradient to lose.

    Args:
        outputs: What the step returned, with its graph.
        known: The `id` of every tensor that the loop collects a gradient for.
        histories: Tensors that must not be in the graph, because leaves stand in their place.
        step: The time step, for the error.

    Returns:
        The `id` of each known tensor that the step used.

    Raises:
        CaptureError: a leaf tensor that requires a gradient and that the loop does not know, or a tensor with a
            history that lies where it could not be replaced.
    """
    used: set[int] = set()
    forbidden = {tensor.grad_fn: tensor for tensor in histories}
    stack = []
    for output in outputs:
        if output.grad_fn is not None:
            stack.append(output.grad_fn)
        elif output.requires_grad:
            _check_leaf(output, known, used, step)
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, _LEAF_NODE):
            _check_leaf(node.variable, known, used, step)
            continue
        if node in forbidden:
            raise CaptureError(
                f"step {step} uses {describe(forbidden[node])}, which was computed from tensors that require a "
                "gradient, and which lies where it cannot be replaced while the step is differentiated (an "
                "argument of a partial, a set, another object); pass it to scan in constants= instead"
            )
        for upstream, _ in node.next_functions:
            if upstream is not None and upstream not in seen:
                seen.add(upstream)
                stack.append(upstream)
    return used


def describe(tensor: Tensor) -> str:
    """A tensor in a few words, for an error."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"a tensor of shape {tuple(tensor.shape)}, {dtype} on {tensor.device}"


def _check_leaf(leaf: Tensor, known: set[int], used: set[int], step: int) -> None:
    if id(leaf) in known:
        used.add(id(leaf))
    elif sys.getrefcount(leaf) > _references_of_an_inner_leaf():
        raise CaptureError(
            f"step {step} uses {_variable_name(leaf)}{describe(leaf)}, which requires a gradient and which "
            "the time loop cannot find, so that its gradient would be lost; make it a parameter of the step's "
            "module or a variable of its closure, or pass it to scan in constants="
        )


@functools.cache
def _references_of_an_inner_leaf() -> int:
    """How many references `_check_leaf` sees on a leaf that only a graph holds."""

    def made_inside() -> Any:
        return torch.ones((), requires_grad=True).exp().grad_fn

    def count(leaf: Tensor) -> int:
        return sys.getrefcount(leaf)

    with torch.enable_grad():
        node = made_inside()
    return count(node.next_functions[0][0].variable)


def _variable_name(tensor: Tensor) -> str:
    """The name under which some dict or object holds a tensor, as far as one can be found."""
    for holder in gc.get_referrers(tensor):
        attributes = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
        for key, value in attributes.items():
            if value is tensor and isinstance(key, str):
                owner = "" if isinstance(holder, dict) else f"{type(holder).__name__}."
                return f'"{owner}{key}", '
    return ""


def _names_used(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in a function and in the functions defined inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_used(constant)
    return names


def _is_foreign(module: str | None) -> bool:
    return module is not None and module != "__main__" and module.partition(".")[0] in _FOREIGN


def _set_attribute(owner: Any, key: str, value: Any) -> None:
    """Set an attribute past `Module.__setattr__` and frozen dataclasses: it is put back after the step."""
    object.__setattr__(owner, key, value)
