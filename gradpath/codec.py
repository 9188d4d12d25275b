"""Values as JSON and tensors: how constructor arguments and optimizer states are written without pickle.

Numbers, text, lists and plain dicts are JSON as they are. Everything else is a dict with one word that begins
with `$`: `{"$tensor": name}` points to a tensor that is stored beside the JSON, `{"$object": "module:Class",
...}` holds the configuration of an object, and `{"$same": n}` is an object that was written before.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradpath.config import Configured, default_argument, rebuild
from gradpath.contract import covers
from gradpath.errors import GradpathError, InputError, LoadError
from gradpath.stage import close_match


class Encoder:
    """Turns values into JSON; tensors are gathered in `tensors`, an object that appears twice is written once."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._written: dict[int, Any] = {}
        self._kept: list[Any] = []

    def encode(self, value: Any, path: str) -> Any:
        """Return a value as JSON.

        Args:
            value: Numbers, text, None, lists, tuples, dicts, enums, paths, tensors, arrays, dtypes, devices,
                stages and other `Configured` objects, dataclasses, named tuples, sets.
            path: Where the value is, dotted: the name of a tensor and of the place in errors.

        Raises:
            InputError: a value that cannot be saved; names its place.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, enum.Enum):
            return {"$enum": _class_name(value, path), "name": value.name}
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if type(value) is list:
            return self._items(value, path)
        if isinstance(value, dict):
            return self._dict(value, path)
        if isinstance(value, torch.dtype):
            return {"$dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"$device": str(value)}
        if isinstance(value, Path):
            return {"$path": str(value)}
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return {"$tuple": self._items(value, path)}
        if isinstance(value, (set, frozenset)):
            kind = "$set" if isinstance(value, set) else "$frozenset"
            return {kind: self._items(sorted(value, key=repr), path)}  # an order that is the same every time
        return self._once(value, path)

    def _items(self, values: Sequence[Any], path: str) -> list[Any]:
        return [self.encode(item, f"{path}.{index}") for index, item in enumerate(values)]

    def _dict(self, value: dict[Any, Any], path: str) -> Any:
        if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, f"{path}.{key}") for key, item in value.items()}
        if type(value) not in (dict, Counter):
            raise _unsupported(value, path)
        pairs = [[self.encode(key, path), self.encode(item, f"{path}.{key}")] for key, item in value.items()]
        return {"$counter" if type(value) is Counter else "$dict": pairs}

    def _once(self, value: Any, path: str) -> Any:
        """Write a tensor or an object; the second time only say which one it was."""
        written: dict[str, Any]
        again: dict[str, Any]
        if id(value) in self._written:
            return self._written[id(value)]
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            self.tensors[path] = torch.from_numpy(value.copy())
            written = again = {"$array": path}
        elif type(value) is torch.Tensor:
            self.tensors[path] = value
            written = again = {"$tensor": path}
        else:
            written = {"$object": _class_name(value, path), "config": self._config(value, path)}
            written["number"] = len(self._kept)
            again = {"$same": len(self._kept)}
        self._kept.append(value)  # An id is its own only while the object lives.
        self._written[id(value)] = again
        return written

    def _config(self, value: Any, path: str) -> dict[str, Any]:
        config = {}
        for name, item in _configuration(value, path).items():
            try:
                config[name] = self.encode(item, f"{path}.{name}")
            except InputError:
                # A default that cannot be written, such as a function, comes back with the constructor.
                if item is not default_argument(type(value), name):
                    raise
        return config


class Decoder:
    """Turns JSON from an `Encoder` back into values.

    Args:
        tensors: The tensors by name.
        allow: Modules outside gradpath whose classes may be built; what is inside them is allowed too.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], allow: Sequence[str] = ()):
        self._tensors = tensors
        self._allow = ("gradpath", *allow)
        self._objects: dict[int, Any] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def decode(self, value: Any) -> Any:
        """Return the value that was encoded.

        Raises:
            LoadError: an unknown word, a class that is not allowed, gone or changed; says what to do.
        """
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        word = next((key for key in value if key.startswith("$")), None)
        if word is None:
            return {key: self.decode(item) for key, item in value.items()}
        if word == "$object":
            return self._object(value)
        if word == "$enum":
            return self._member(value)
        if word == "$same":
            return self._objects[value["$same"]]
        read = _READERS.get(word)
        if read is None:
            raise LoadError(
                f'the saved run holds "{word}", which is not known here; it was not written by gp.save'
            )
        return read(self, value[word])

    def _object(self, value: dict[str, Any]) -> Any:
        cls = self._class(value["$object"])
        config = {name: self.decode(item) for name, item in value["config"].items()}
        try:
            built = rebuild(cls, config)
        except LoadError:
            raise
        except (GradpathError, TypeError, ValueError, KeyError) as error:
            raise LoadError(
                f"{value['$object']} cannot be built from its saved arguments {', '.join(config) or '(none)'}: "
                f"{error}. Its code has changed since; use the version that saved the run"
            ) from error
        self._objects[value["number"]] = built
        return built

    def _member(self, value: dict[str, Any]) -> Any:
        members: Any = self._class(value["$enum"]).__members__  # type: ignore[attr-defined]
        if value["name"] not in members:
            known = ", ".join(members)
            raise LoadError(f'{value["$enum"]} has no "{value["name"]}" any more; it has {known}')
        return members[value["name"]]

    def _class(self, text: str) -> type:
        module, _, name = text.partition(":")
        if not covers(self._allow, module):
            raise LoadError(
                f"the saved run asks for {text}, whose code is not part of gradpath and would be run by loading. "
                f'If you trust it, pass allow=("{module}",)'
            )
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            raise LoadError(
                f"{text} cannot be imported ({error}); install or put its module on the path"
            ) from error
        for word in name.split("."):
            known = [key for key, item in vars(found).items() if isinstance(item, type)]
            found = vars(found).get(word)
            if not isinstance(found, type):
                raise LoadError(
                    f'there is no class "{name}" in {module}{close_match(name, known)}; it was renamed or removed. '
                    f"Use the version that saved the run, or keep the old name"
                )
        known_kind = issubclass(found, (Configured, enum.Enum)) or hasattr(found, "_fields")
        buildable = known_kind or dataclasses.is_dataclass(found)
        if not buildable or found.__module__ != module:
            raise LoadError(
                f"{text} is not a stage or a plain object of {module}; it was not written by gp.save"
            )
        return found

    def _array(self, name: str) -> np.ndarray:
        return self._arrays.setdefault(name, self._tensors[name].numpy())


_READERS: dict[str, Callable[[Decoder, Any], Any]] = {
    "$float": lambda decoder, text: float(text),
    "$tuple": lambda decoder, items: tuple(decoder.decode(item) for item in items),
    "$set": lambda decoder, items: {decoder.decode(item) for item in items},
    "$frozenset": lambda decoder, items: frozenset(decoder.decode(item) for item in items),
    "$dict": lambda decoder, pairs: {decoder.decode(key): decoder.decode(item) for key, item in pairs},
    "$counter": lambda decoder, pairs: Counter({decoder.decode(key): item for key, item in pairs}),
    "$dtype": lambda decoder, name: getattr(torch, name),
    "$device": lambda decoder, name: torch.device(name),
    "$path": lambda decoder, text: Path(text),
    "$tensor": lambda decoder, name: decoder._tensors[name],
    "$array": lambda decoder, name: decoder._array(name),
}


def class_name(value: Any) -> str:
    """Return the class of an object as `"module:Class"`."""
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class_name(value: Any, path: str) -> str:
    if "<locals>" in type(value).__qualname__:
        raise InputError(
            f"{path}: {type(value).__name__} is defined inside a function, where a saved run cannot find it again; "
            f"define it at the top of a module"
        )
    return class_name(value)


def _configuration(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Configured):
        return value.config
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    raise _unsupported(value, path)


def _unsupported(value: Any, path: str) -> InputError:
    return InputError(
        f"{path}: a {type(value).__name__} cannot be saved; use numbers, text, lists, dicts, tensors, arrays, "
        f"stages or dataclasses, or give its class gradpath.config.Configured as a base"
    )
