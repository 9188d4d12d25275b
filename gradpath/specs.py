"""Specs: what one value of a contract looks like, as text, and how a value is held against it.

`"B 1 H W"` is a floating tensor of four axes, `""` a scalar, `"B 3:int64"` a tensor of one dtype, `"... 3"` a
tensor with any leading axes, `"generator"` a `torch.Generator`, `"any"` an unchecked object, and a mapping of
specs a nested dict. A name in a spec is a size, the same wherever it appears in one call of one stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from gradpath.errors import ContractError, GradpathError, ShapeError

SpecLike: TypeAlias = "str | Mapping[str, SpecLike]"


class Mismatch(Exception):
    """A value that does not fit its spec; whoever knows the wire turns it into `error`."""

    def __init__(self, path: str, reason: str, error: type[GradpathError] = ShapeError):
        super().__init__(reason)
        self.path = path
        self.reason = reason
        self.error = error


@dataclass
class Binding:
    """What one call of a stage has fixed so far, and where: sizes by name, the floating dtype, the device."""

    sizes: dict[str, tuple[int, str]] = field(default_factory=dict)
    dtype: tuple[torch.dtype, str] | None = None
    device: tuple[torch.device, str] | None = None


@dataclass(frozen=True)
class TensorSpec:
    """A tensor: sizes and names of sizes, one per axis; `dtype` None is the floating dtype of the call."""

    dims: tuple[int | str, ...]
    leading: bool = False
    dtype: torch.dtype | None = None

    @property
    def text(self) -> str:
        """The spec as it is written in a contract."""
        dims = " ".join((["..."] if self.leading else []) + [str(dim) for dim in self.dims])
        return dims if self.dtype is None else f"{dims}:{str(self.dtype).removeprefix('torch.')}"

    def check(self, value: Any, binding: Binding, path: str, closed: bool) -> None:
        """Hold a value against the spec; new names of sizes are added to `binding`."""
        if not isinstance(value, torch.Tensor):
            raise Mismatch(path, f'expected a tensor "{self.text}", got {_kind(value)}', ContractError)
        shape = value.shape
        extra = len(shape) - len(self.dims)
        if extra < 0 or (extra > 0 and not self.leading):
            raise Mismatch(path, self._wrong_rank(tuple(shape)))
        for axis, dim in enumerate(self.dims, extra):
            size = shape[axis]
            if isinstance(dim, int):
                if size != dim:
                    raise Mismatch(path, self._wrong_size(tuple(shape), axis, dim))
            else:
                bound, origin = binding.sizes.setdefault(dim, (size, path))
                if bound != size:
                    reason = f'{dim} is {bound} in "{origin}" and {size} here; one call has one {dim}'
                    raise Mismatch(path, f'expected "{self.text}", got {tuple(shape)}; {reason}')
        self._check_dtype(value, binding, path)
        if binding.device is None:
            binding.device = (value.device, path)
        elif binding.device[0] != value.device and shape:
            device, origin = binding.device
            remedy = f'"{origin}" is on {device}; move both to one device'
            raise Mismatch(path, f"is on {value.device}, but {remedy}")

    def _check_dtype(self, value: torch.Tensor, binding: Binding, path: str) -> None:
        if self.dtype is not None:
            if value.dtype != self.dtype:
                raise Mismatch(
                    path, f"expected {self.dtype}, got {value.dtype}; convert with .to({self.dtype})"
                )
        elif not value.dtype.is_floating_point:
            name = str(value.dtype).removeprefix("torch.")
            remedy = f'convert it, or declare "{self.text}:{name}"'
            raise Mismatch(path, f'expected a floating tensor "{self.text}", got {value.dtype}; {remedy}')
        elif binding.dtype is None:
            binding.dtype = (value.dtype, path)
        elif binding.dtype[0] != value.dtype:
            dtype, origin = binding.dtype
            remedy = (
                f'"{origin}" is {dtype}; all floating tensors of one call share a dtype, convert one of them'
            )
            raise Mismatch(path, f"got {value.dtype}, but {remedy}")

    def _wrong_size(self, shape: tuple[int, ...], axis: int, dim: int) -> str:
        return f'expected "{self.text}", got {shape}; axis {axis} must have size {dim}, not {shape[axis]}'

    def _wrong_rank(self, shape: tuple[int, ...]) -> str:
        return f'expected "{self.text}", got {shape}; {self._rank_remedy(shape)}'

    def _rank_remedy(self, shape: tuple[int, ...]) -> str:
        def without(axis: int) -> str:
            return TensorSpec(self.dims[:axis] + self.dims[axis + 1 :], self.leading, self.dtype).text

        if len(shape) == len(self.dims) - 1:
            for axis, dim in enumerate(self.dims):
                if dim == 1:
                    what = (
                        "a channel axis"
                        if (axis, len(self.dims)) == (1, 4)
                        else f"an axis, unsqueeze({axis}),"
                    )
                    return f'add {what} or declare "{without(axis)}"'
            if isinstance(self.dims[0], str):
                return f'add the axis {self.dims[0]}, unsqueeze(0), or declare "{without(0)}"'
        if len(shape) == len(self.dims) + 1 and 1 in shape:
            axis = shape.index(1)
            return f"remove the axis of size 1, squeeze({axis}), or declare a spec of {len(shape)} axes"
        return f"give it {len(self.dims)} axes, not {len(shape)}, or declare another spec"


@dataclass(frozen=True)
class DictSpec:
    """A nested dict of values, for example a state with a pose and a velocity."""

    fields: Mapping[str, Spec]

    @property
    def text(self) -> dict[str, SpecLike]:
        """The spec as it is written in a contract."""
        return {name: spec.text for name, spec in self.fields.items()}

    def check(self, value: Any, binding: Binding, path: str, closed: bool) -> None:
        """Hold a dict against the spec; fields that are not declared are refused when `closed`."""
        if not isinstance(value, Mapping):
            expected = f"a dict with {_quoted(self.fields)}"
            raise Mismatch(path, f"expected {expected}, got {_kind(value)}", ContractError)
        for name, spec in self.fields.items():
            if name not in value:
                raise Mismatch(path, f'has no "{name}"; it has {_quoted(value)}', ContractError)
            spec.check(value[name], binding, f"{path}.{name}", closed)
        if closed and len(value) != len(self.fields):
            extra = _quoted(name for name in value if name not in self.fields)
            raise Mismatch(
                path, f"has {extra}, which the contract does not declare; add it there", ContractError
            )


@dataclass(frozen=True)
class ObjectSpec:
    """A value that is not a tensor: `"generator"`, or `"any"`."""

    text: str

    def check(self, value: Any, binding: Binding, path: str, closed: bool) -> None:
        """Hold an object against the spec."""
        if self.text == "generator" and not isinstance(value, torch.Generator):
            raise Mismatch(path, f"expected a torch.Generator, got {_kind(value)}", ContractError)


Spec: TypeAlias = TensorSpec | DictSpec | ObjectSpec


def parse(text: SpecLike) -> Spec:
    """Read a spec.

    Raises:
        ContractError: the text is not a spec; says which word and what is allowed.
    """
    if isinstance(text, Mapping):
        return DictSpec({name: parse(spec) for name, spec in text.items()})
    if not isinstance(text, str):
        raise ContractError(f"a spec is text or a dict of specs, got {_kind(text)}")
    if text in ("generator", "any"):
        return ObjectSpec(text)
    words, colon, dtype = text.partition(":")
    names = words.split()
    leading = bool(names) and names[0] == "..."
    dims: list[int | str] = []
    for name in names[leading:]:
        if not (name.isdigit() or name.isidentifier()):
            hint = 'use sizes and names such as "B 3 H W", and "..." only in front'
            raise ContractError(f'spec "{text}": "{name}" is not an axis; {hint}')
        dims.append(int(name) if name.isdigit() else name)
    return TensorSpec(tuple(dims), leading, _parse_dtype(text, dtype.strip()) if colon else None)


def _parse_dtype(text: str, name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ContractError(
            f'spec "{text}": "{name}" is not a torch dtype; use one such as int64, bool or float32'
        )
    return dtype


def select(spec: Spec, fields: tuple[str, ...]) -> Spec | None:
    """Return the spec of a nested field, None when there is no such field."""
    for name in fields:
        if isinstance(spec, ObjectSpec):
            return spec if spec.text == "any" else None
        if isinstance(spec, TensorSpec) or name not in spec.fields:
            return None
        spec = spec.fields[name]
    return spec


def conflict(source: Spec, target: Spec) -> str | None:
    """Return why no value of `source` can fit `target`, by rank, fixed sizes, dtype and fields; or None."""
    if ObjectSpec("any") in (source, target) or source == target:
        return None
    if isinstance(source, DictSpec) and isinstance(target, DictSpec):
        for name, spec in target.fields.items():
            if name not in source.fields:
                return f'expected a field "{name}", got {_quoted(source.fields)}'
            if reason := conflict(source.fields[name], spec):
                return f'field "{name}": {reason}'
        return None
    if not (isinstance(source, TensorSpec) and isinstance(target, TensorSpec)):
        return f"expected {_described(target)}, got {_described(source)}"
    got = f"expected {_described(target)}, got {_described(source)}"
    rank = len(source.dims) - len(target.dims)
    if (rank < 0 and not source.leading) or (rank > 0 and not target.leading):
        return got
    pairs = zip(reversed(source.dims), reversed(target.dims), strict=False)
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
        return got
    floating = [spec.dtype is None or spec.dtype.is_floating_point for spec in (source, target)]
    if floating[0] != floating[1] or (source.dtype != target.dtype and source.dtype and target.dtype):
        return got
    return None


def merge(first: Spec, second: Spec) -> Spec:
    """Join two specs that one value must satisfy; they must not be in `conflict`. Fields are united."""
    if first == ObjectSpec("any"):
        return second
    if isinstance(first, DictSpec) and isinstance(second, DictSpec):
        fields = dict(first.fields)
        for name, spec in second.fields.items():
            fields[name] = merge(fields[name], spec) if name in fields else spec
        return DictSpec(fields)
    if isinstance(first, TensorSpec) and isinstance(second, TensorSpec):
        long, short = (first, second) if len(first.dims) >= len(second.dims) else (second, first)
        split = len(long.dims) - len(short.dims)
        dims = [a if isinstance(a, int) else b for a, b in zip(long.dims[split:], short.dims, strict=True)]
        return TensorSpec(
            (*long.dims[:split], *dims), first.leading and second.leading, first.dtype or second.dtype
        )
    return first


def sizes(spec: Spec) -> set[str]:
    """Return the names of sizes in a spec."""
    if isinstance(spec, DictSpec):
        return set().union(*map(sizes, spec.fields.values()))
    return {dim for dim in spec.dims if isinstance(dim, str)} if isinstance(spec, TensorSpec) else set()


def rename_sizes(spec: Spec, names: Mapping[str, str]) -> Spec:
    """Return a spec with some names of sizes replaced."""
    if isinstance(spec, DictSpec):
        return DictSpec({name: rename_sizes(field, names) for name, field in spec.fields.items()})
    if isinstance(spec, TensorSpec):
        dims = tuple(names.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims)
        return TensorSpec(dims, spec.leading, spec.dtype)
    return spec


def tensors(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Walk the tensors of a value that is a tensor or a nested dict, each with its dotted path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from tensors(item, f"{path}.{name}")


def _described(spec: Spec) -> str:
    return f"a dict with {_quoted(spec.fields)}" if isinstance(spec, DictSpec) else f'"{spec.text}"'


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names) or "nothing"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
