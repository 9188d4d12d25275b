"""Running a step again as it ran before: snapshots of what determines it, and guards against what would change it."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradpath.contract import Contract, covers
from gradpath.errors import ContractError, GradpathError
from gradpath.mode import current_mode, mode
from gradpath.relaxation import surroundings, within

_BLOCK = 2**15
"""How many numbers are looked at in one go to compare steps: large states take no copies of their size."""


class Ambient:
    """The mode, the temperatures and autocast settings here and now, to be entered again where a step is recomputed.

    Autocast's cache of converted weights is left off: it ties the graphs of the steps together, and older versions
    of torch cache weights that were converted without a graph, whose gradient is lost in a later step.
    """

    def __init__(self) -> None:
        self.mode = current_mode()
        self.relaxation = surroundings()
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run under these settings."""
        with ExitStack() as stack:
            stack.enter_context(mode(self.mode))
            stack.enter_context(within(self.relaxation))
            for kind, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield


@dataclass
class Snapshot:
    """All that determines the steps from here on: the carry, generator states, buffers that steps write into."""

    carry: list[Any]
    versions: list[int]
    generators: list[tuple[torch.Generator, Tensor]]
    buffers: list[tuple[Tensor, Tensor]]

    def replaced(self, kind: type, function: Callable[[Any], Any]) -> Snapshot:
        """Return a copy with something else in the place of all tensors, or of whatever stands for them."""

        def new(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, kind) else leaf

        carry = [new(leaf) for leaf in self.carry]
        return Snapshot(
            carry,
            _versions(carry),
            [(generator, new(state)) for generator, state in self.generators],
            [(buffer, new(value)) for buffer, value in self.buffers],
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that it holds."""
        inner = [*(state for _, state in self.generators), *(value for _, value in self.buffers)]
        return [*(leaf for leaf in self.carry if isinstance(leaf, Tensor)), *inner]

    def restore(self) -> list[Any]:
        """Put generators and buffers back and return the carry.

        Raises:
            GradpathError: a tensor of the carry was changed in place since the snapshot was taken.
        """
        if self.versions != _versions(self.carry):
            raise GradpathError(
                "a tensor of the carry was changed in place after scan kept it to recompute steps from, so their "
                "gradient would be wrong; clone the last carry before writing into it"
            )
        for generator, state in self.generators:
            generator.set_state(state)
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
        return list(self.carry)


class Effects:
    """What steps read and change besides their arguments: random generators, and buffers declared in contracts."""

    def __init__(self, modules: Iterable[nn.Module], generators: Iterable[torch.Generator]):
        found = list(generators)
        self.buffers: list[Tensor] = []
        for module in modules:
            contract = getattr(module, "contract", None)
            if not isinstance(contract, Contract):
                continue
            if "rng" in contract.effects:
                found += [torch.default_generator, *_cuda_generators()]
            self.buffers += [b for name, b in module.named_buffers() if covers(contract.mutated, name)]
        self.buffers = _once(self.buffers)
        self.generators = _once(found)

    def snapshot(self, carry: list[Any]) -> Snapshot:
        """Keep a carry with the states of generators, those in the carry too, and copies of the buffers."""
        inner = [leaf for leaf in carry if isinstance(leaf, torch.Generator)]
        return Snapshot(
            list(carry),
            _versions(carry),
            [(generator, generator.get_state()) for generator in _once([*self.generators, *inner])],
            [(buffer, buffer.detach().clone()) for buffer in self.buffers],
        )


class DrawGuard:
    """Refuses draws from torch's global generators, which a recomputed step would not repeat."""

    def __init__(self, declared: list[torch.Generator]):
        known = {id(generator) for generator in declared}
        everything = (torch.default_generator, *_cuda_generators())
        self.watched = [generator for generator in everything if id(generator) not in known]
        self.states = [generator.get_state() for generator in self.watched]

    def check(self, step: int) -> None:
        """Compare with the states at the start.

        Raises:
            ContractError: a step drew from a global generator.
        """
        for generator, state in zip(self.watched, self.states, strict=True):
            if not torch.equal(state, generator.get_state()):
                raise ContractError(
                    f"step {step} drew from the global random generator of {generator.device} (as dropout and "
                    "torch.randn without generator= do), so that recomputing it would draw other numbers and give "
                    "a wrong gradient; draw from a torch.Generator that the step holds or carries, or declare "
                    'generators=[torch.default_generator], or use memory="all"'
                )


class VersionGuard:
    """Refuses in-place writes into what steps read: a step recomputed after one would compute something else."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]):
        self.watched = [(name, t, t._version) for name, t in named if not t.is_inference()]

    def forget(self, ids: set[int]) -> None:
        """Stop watching, and holding, some tensors."""
        self.watched = [entry for entry in self.watched if id(entry[1]) not in ids]

    def check(self, who: str) -> None:
        """Compare with the versions at the start.

        Raises:
            ContractError: a tensor was written into.
        """
        for name, tensor, version in self.watched:
            if tensor._version != version:
                raise ContractError(
                    f'"{name}", shape {tuple(tensor.shape)}, was changed in place {who}, so that recomputed steps '
                    "would read other values than the first time and give a wrong gradient; carry it through the "
                    'time loop, declare it in the contract of its stage as effects=("mutates:<buffer>",), or use '
                    'memory="all"'
                )


class Repeats:
    """Refuses a step that gives another value when it is run again than it gave the first time.

    Only two checksums of a step are kept. One covers every bit of what is on the CPU. Where it differs, and on
    other devices, a random projection decides within a tolerance: torch computes some layers in another order
    without a tape, and sums on a GPU come in any order. What is on a GPU is compared at the end of the backward
    pass, so that nothing waits for the device before.
    """

    def __init__(self) -> None:
        self.bits: dict[int, tuple[int, int]] = {}
        self.projected: dict[int, Tensor] = {}
        self.pending: list[tuple[int, Tensor, float]] = []

    def __contains__(self, step: int) -> bool:
        """Whether a step has run."""
        return step in self.bits

    def check(self, step: int, leaves: list[Any]) -> None:
        """Keep the checksums of what a step gives the first time; compare with them from then on.

        Raises:
            ContractError: it gives another value than the first time.
        """
        if step not in self.bits:
            self.bits[step], self.projected[step] = _bits(leaves), _projection(leaves)
            return
        numbers, bits = _bits(leaves)
        if numbers != self.bits[step][0]:
            raise _changed(step)
        on_cpu = all(leaf.device.type == "cpu" for leaf in _dense(leaves))
        if on_cpu and bits == self.bits[step][1]:
            return
        self.pending.append((step, _projection(leaves), _tolerance(leaves)))
        if on_cpu:
            self.finish()

    def finish(self) -> None:
        """Make the comparisons that have to wait for the device.

        Raises:
            ContractError: a step gave another value.
        """
        pending, self.pending = self.pending, []
        if not pending:
            return
        first = torch.stack([self.projected[step] for step, _, _ in pending]).cpu()
        again = torch.stack([projection for _, projection, _ in pending]).cpu()
        allowed = first[:, 1] * torch.tensor([tolerance for _, _, tolerance in pending], dtype=first.dtype)
        # A comparison with NaN is false: what is not finite is for others to refuse.
        bad = ((first[:, 0] - again[:, 0]).abs() > allowed).tolist()
        if any(bad):
            raise _changed(min(step for (step, _, _), is_bad in zip(pending, bad, strict=True) if is_bad))


def _dense(leaves: list[Any]) -> list[Tensor]:
    found = [
        t.detach() for t in leaves if isinstance(t, Tensor) and t.layout == torch.strided and not t.is_meta
    ]
    return [t.resolve_conj().resolve_neg() for t in found]


def _bits(leaves: list[Any]) -> tuple[int, int]:
    """Checksums of the numbers among some leaves, and of the bits of the tensors on the CPU."""
    total = 0
    for leaf in _dense(leaves):
        if leaf.device.type == "cpu":
            total = zlib.crc32(leaf.contiguous().view(-1).view(torch.uint8).numpy().data, total)
    numbers = [leaf for leaf in leaves if isinstance(leaf, (bool, int, float))]
    return zlib.crc32(repr(numbers).encode()), total


def _projection(leaves: list[Any]) -> Tensor:
    """The product with a fixed random vector, and the norm, of all tensors among some leaves side by side."""
    found = _dense(leaves)
    if not found:
        return torch.zeros(2, dtype=torch.float64)
    flat = [torch.view_as_real(t).reshape(-1) if t.is_complex() else t.reshape(-1) for t in found]
    device = next((t.device for t in flat if t.device.type != "cpu"), flat[0].device)
    if sum(len(t) for t in flat) <= _BLOCK:
        flat = [torch.cat([t.to(device) for t in flat])]
    products, norms = [], []
    for i, block in enumerate(block for t in flat for block in t.split(_BLOCK)):
        values = block.to(device)
        if values.dtype not in (torch.float32, torch.float64):
            values = values.double()
        size = 1 << max(len(values) - 1, 0).bit_length()
        vector = _random_vector(device, values.dtype, size)[: len(values)]
        # The blocks share one vector; their weights differ, so that blocks that change places are noticed.
        products.append((1.0 + 0.5 * math.sin(i)) * torch.dot(values, vector).double())
        norms.append(torch.linalg.vector_norm(values, dtype=torch.float64))
    return torch.stack([torch.stack(products).sum(), torch.linalg.vector_norm(torch.stack(norms))])


def _tolerance(leaves: list[Any]) -> float:
    """How far a repeated step may be off in relation to its norm: half the digits of its coarsest type."""
    types = {t.dtype for t in _dense(leaves) if t.is_floating_point() or t.is_complex()} or {torch.float64}
    types |= {torch.get_autocast_dtype(k) for k in ("cpu", "cuda") if torch.is_autocast_enabled(k)}
    return max(torch.finfo(dtype).eps for dtype in types) ** 0.5


@functools.lru_cache(maxsize=64)
def _random_vector(device: torch.device, dtype: torch.dtype, size: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(size, dtype=dtype, device=device, generator=generator)


def _changed(step: int) -> ContractError:
    return ContractError(
        f"step {step} gave another value when it was recomputed, so its gradient would be wrong: it reads "
        "something that changes between two runs, such as an attribute that it counts up, numpy's generator or "
        "the random module; take that through the carry, draw from a torch.Generator that the step holds or "
        'carries, or use memory="all"'
    )


def _cuda_generators() -> tuple[torch.Generator, ...]:
    return tuple(torch.cuda.default_generators) if torch.cuda.is_initialized() else ()


def _versions(leaves: list[Any]) -> list[int]:
    return [leaf._version for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]


def _once(items: list[Any]) -> list[Any]:
    """The items, each object once."""
    return list({id(item): item for item in items}.values())
