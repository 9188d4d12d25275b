"""Contracts: what a stage takes and gives, how it differentiates, and what it does besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradpath.errors import ContractError
from gradpath.specs import Binding, Mismatch, Spec, SpecLike, parse, select

GRADIENTS = ("exact", "implicit", "relaxed", "straight_through", "surrogate", "score_function", "none")
"""How a stage may differentiate, from the derivative itself to none at all."""

EFFECTS = ("rng", "io", "mutates:<input or buffer>")
"""What a stage may do that a pure function would not."""


@dataclass(frozen=True)
class Contract:
    """What a stage promises: named inputs and outputs, its gradient, its effects.

    Args:
        inputs: Spec of each input, by name. See `gradpath.specs` for how a spec is written.
        outputs: Spec of each output, by name.
        gradient: One of `GRADIENTS`. A stage of `"none"` runs without a graph and its outputs are detached.
        effects: Any of `EFFECTS`. `"rng"`: draws from torch's global generators (a generator that comes in as
            an input needs no word). `"mutates:x"`: writes in place into input or buffer `x`, or into what is
            under it; such buffers are restored when a time loop recomputes a step.
        shared: Names, or patterns, of parameters that other stages may own too.
        detached: Floating outputs, or fields such as `"state.contact"`, that carry no gradient on purpose.

    Raises:
        ContractError: an unknown word, or a spec that cannot be read; says what is allowed.
    """

    inputs: Mapping[str, SpecLike]
    outputs: Mapping[str, SpecLike]
    gradient: str = "exact"
    effects: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    input_specs: dict[str, Spec] = field(init=False, repr=False, compare=False)
    output_specs: dict[str, Spec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("effects", "shared", "detached"):
            words = getattr(self, name)
            object.__setattr__(self, name, (words,) if isinstance(words, str) else tuple(words))
        for name in ("inputs", "outputs"):
            specs = getattr(self, name)
            if not isinstance(specs, Mapping):
                raise ContractError(f'{name} is a dict of specs such as {{"pose": "B 7"}}, got {specs!r}')
            parsed = {key: _parse_named(key, text) for key, text in specs.items()}
            object.__setattr__(self, name.removesuffix("s") + "_specs", parsed)
        if self.gradient not in GRADIENTS:
            raise ContractError(
                f'gradient "{self.gradient}" is not known; it is one of {", ".join(GRADIENTS)}'
            )
        for effect in self.effects:
            if effect not in ("rng", "io") and not (effect.startswith("mutates:") and len(effect) > 8):
                raise ContractError(f'effect "{effect}" is not known; effects are {", ".join(EFFECTS)}')
        for path in self.detached:
            name, *fields = path.split(".")
            if name not in self.output_specs or select(self.output_specs[name], tuple(fields)) is None:
                raise ContractError(
                    f'detached "{path}" is not an output; outputs are {", ".join(self.outputs)}'
                )

    @property
    def mutated(self) -> tuple[str, ...]:
        """The inputs and buffers that the stage writes into."""
        return tuple(
            effect.removeprefix("mutates:") for effect in self.effects if effect.startswith("mutates:")
        )

    def check_inputs(self, values: Mapping[str, Any], label: Callable[[str], str] | None = None) -> Binding:
        """Hold the inputs of one call against the contract; inputs that are not given are not looked at.

        Args:
            values: The inputs by name.
            label: How an input is called in an error, from its path.

        Returns:
            What the inputs fixed: sizes by name, dtype, device. `check_outputs` takes it.
        """
        binding = Binding()
        self._check(self.input_specs, values, binding, label or '"{}"'.format, closed=False)
        return binding

    def check_outputs(
        self, values: Mapping[str, Any], binding: Binding, label: Callable[[str], str] | None = None
    ) -> None:
        """Hold the outputs of one call against the contract and against what its inputs fixed."""
        self._check(self.output_specs, values, binding, label or '"{}"'.format, closed=True)

    @staticmethod
    def _check(
        specs: dict[str, Spec],
        values: Mapping[str, Any],
        binding: Binding,
        label: Callable[[str], str],
        closed: bool,
    ) -> None:
        try:
            for name, value in values.items():
                specs[name].check(value, binding, name, closed)
        except Mismatch as mismatch:
            raise mismatch.error(f"{label(mismatch.path)}: {mismatch.reason}") from None

    def json(self) -> dict[str, Any]:
        """Return the contract as plain JSON values; specs as they are written."""
        return {
            "inputs": {name: spec.text for name, spec in self.input_specs.items()},
            "outputs": {name: spec.text for name, spec in self.output_specs.items()},
            "gradient": self.gradient,
            "effects": list(self.effects),
            "shared": list(self.shared),
            "detached": list(self.detached),
        }


def covers(names: tuple[str, ...], path: str) -> bool:
    """Whether a dotted path is one of `names` or lies under one of them."""
    return any(path == name or path.startswith(name + ".") for name in names)


def _parse_named(name: str, text: SpecLike) -> Spec:
    try:
        return parse(text)
    except ContractError as error:
        raise ContractError(f'"{name}": {error}') from None
