"""Stages: torch modules with a contract, the unit of ownership, test, replacement and diagnosis."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from gradpath.config import Configured, recorded
from gradpath.contract import Contract, covers
from gradpath.errors import ContractError, NonFiniteError
from gradpath.mode import current_mode
from gradpath.specs import tensors

Observer = Callable[[str, str, torch.Tensor], None]
"""Called with the stage's name, the output's dotted path and its value."""

_observers: ContextVar[tuple[Observer, ...]] = ContextVar("gradpath_observers", default=())

_finite_checked: ContextVar[bool] = ContextVar("gradpath_check_finite", default=False)


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call `observer` after each stage that runs in this thread within a `with` block."""
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


@contextlib.contextmanager
def check_finite(enabled: bool = True) -> Iterator[None]:
    """Raise at the first stage output that is NaN or infinite, within a `with` block.

    Raises:
        NonFiniteError: names the stage, the output and the first world. On a GPU every output is waited for.
    """
    token = _finite_checked.set(enabled)
    try:
        yield
    finally:
        _finite_checked.reset(token)


class Stage(Configured, nn.Module):
    """A torch module with a contract.

    A subclass sets `contract` on the class or in its constructor and writes `forward` with the inputs of the
    contract as named parameters. `forward` returns a tensor (one output), a tuple in the order of the
    contract, or a dict by name. An input whose parameter has a default is optional, and may be None.

    `run` is the checked call that pipelines use; calling the stage itself is plain `nn.Module` behaviour.
    Constructor arguments are kept in `config`, from which a saved run is rebuilt.

    Raises:
        ContractError: at construction, when there is no contract or `forward` does not match it.
    """

    contract: Contract
    _optional: frozenset[str]

    def __init__(self) -> None:
        super().__init__()

    __init__ = recorded(__init__)

    def constructed(self) -> None:
        """Check the contract against `forward` and the buffers, once everything is in place."""
        kind = type(self).__name__
        if not isinstance(getattr(self, "contract", None), Contract):
            raise ContractError(
                f"stage {kind} has no contract, so nothing about it can be checked; "
                f'set `contract = gp.Contract(inputs={{...}}, outputs={{...}}, gradient="...")` on it'
            )
        self._optional = self._match_forward()
        buffers = [name for name, _ in self.named_buffers()]
        for name in self.contract.mutated:
            if name.split(".")[0] not in self.contract.inputs and not any(
                covers((name,), b) for b in buffers
            ):
                known = ", ".join([*self.contract.inputs, *buffers]) or "none"
                raise ContractError(
                    f'stage {kind} declares the effect "mutates:{name}", but has no such input or buffer; '
                    f"it has {known}"
                )

    def _match_forward(self) -> frozenset[str]:
        """Return the inputs with a default; refuse a forward that does not take the contract's inputs."""
        kind = type(self).__name__
        parameters = inspect.signature(self.forward).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for name in self.contract.inputs:
            if name not in parameters and not takes_all:
                raise ContractError(
                    f'the contract of {kind} has the input "{name}", but forward does not take it'
                )
        optional = set()
        for name, parameter in parameters.items():
            if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                continue
            if parameter.default is not inspect.Parameter.empty:
                optional.add(name)
            elif name not in self.contract.inputs:
                raise ContractError(
                    f'forward of {kind} takes "{name}", which its contract does not declare; '
                    f"add it to the inputs"
                )
        return frozenset(optional & set(self.contract.inputs))

    @property
    def optional_inputs(self) -> frozenset[str]:
        """The inputs that may be left out."""
        return self._optional

    def run(
        self, values: Mapping[str, Any], *, name: str = "", sources: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Call the stage on named values and hold everything against its contract.

        Args:
            values: The inputs by name.
            name: What the stage is called in errors and by observers; its class by default.
            sources: Where each input comes from, for errors: `{"depth": "camera.depth"}`.

        Returns:
            The outputs by name, in the order of the contract; detached when the gradient is `"none"`.

        Raises:
            ShapeError: a value of another shape, dtype or device than declared.
            ContractError: a missing or unknown value, an undeclared effect, an output without a gradient.
            NonFiniteError: within `check_finite`, an output that is NaN or infinite.
        """
        contract = self.contract
        called = name or type(self).__name__

        def wire(path: str) -> str:
            source = (sources or {}).get(path.split(".")[0])
            return f'wire "{called}.{path}"' + (f' (from "{source}")' if source else "")

        arguments = self._arguments(values, called)
        given = {
            key: value for key, value in arguments.items() if value is not None or key not in self._optional
        }
        binding = contract.check_inputs(given, wire)
        with _watched(self, arguments, called):
            if contract.gradient == "none":
                with torch.no_grad():
                    result = self(**arguments)
            else:
                result = self(**arguments)
        outputs = self.named_outputs(result, called)
        if contract.gradient == "none":
            outputs = {key: _detached(value) for key, value in outputs.items()}
        contract.check_outputs(outputs, binding, lambda path: f'stage "{called}", output "{path}"')
        if contract.gradient != "none" and torch.is_grad_enabled():
            self._check_gradient(arguments, outputs, called)
        self._notify(outputs, called)
        return outputs

    def _arguments(self, values: Mapping[str, Any], called: str) -> dict[str, Any]:
        for name in values:
            if name not in self.contract.inputs:
                raise ContractError(
                    f'stage "{called}" has no input "{name}"{close_match(name, self.contract.inputs)}; '
                    f"its inputs are {', '.join(self.contract.inputs) or 'none'}"
                )
        for name in self.contract.inputs:
            if name not in values and name not in self.optional_inputs:
                raise ContractError(f'stage "{called}" was not given its input "{name}"; pass it, or wire it')
        return dict(values)

    def named_outputs(self, result: Any, called: str) -> dict[str, Any]:
        """Return what `forward` returned as outputs by name, in the order of the contract.

        Raises:
            ContractError: it is something else than the contract says.
        """
        names = list(self.contract.output_specs)
        if isinstance(result, Mapping) and set(result) == set(names):
            return {name: result[name] for name in names}
        if len(names) == 1:
            return {names[0]: result[0] if isinstance(result, tuple) and len(result) == 1 else result}
        if isinstance(result, tuple) and len(result) == len(names):
            return dict(zip(names, result, strict=True))
        got = (
            f"a dict with {', '.join(map(str, result))}" if isinstance(result, Mapping) else _describe(result)
        )
        raise ContractError(
            f'stage "{called}" returned {got}; its contract has the outputs {", ".join(names)}: '
            f"return a dict with these names or a tuple in this order"
        )

    def _check_gradient(self, arguments: dict[str, Any], outputs: dict[str, Any], called: str) -> None:
        """Refuse outputs without a gradient where something that they may depend on needs one.

        One input that needs a gradient does not mean that every output depends on it: so either no output at
        all carries a gradient, or all inputs need one and some output does not carry it.
        """
        contract = self.contract
        floating = [
            (path, value)
            for name, output in outputs.items()
            for path, value in tensors(output, name)
            if value.is_floating_point() and not covers(contract.detached, path)
        ]
        lacking = [path for path, value in floating if not value.requires_grad]
        if not lacking:
            return
        if current_mode() == "hard" and contract.gradient in ("relaxed", "straight_through", "surrogate"):
            return  # The hard operation need not have a gradient.
        needs = [
            value.requires_grad
            for name, argument in arguments.items()
            for _, value in tensors(argument, name)
            if value.is_floating_point()
        ]
        if all(needs) if needs and len(lacking) < len(floating) else any(needs) or _is_trained(self):
            raise ContractError(
                f'stage "{called}" promises a gradient ("{contract.gradient}"), but its output '
                f'"{lacking[0]}" carries none, although what goes in needs one: the path is cut inside the '
                f"stage. Find the "
                f'.detach(), .item() or no_grad, or declare gradient="none" or detached=("{lacking[0]}",)'
            )

    def _notify(self, outputs: dict[str, Any], called: str) -> None:
        checked, observers = _finite_checked.get(), _observers.get()
        if not (checked or observers):
            return
        for name, output in outputs.items():
            for path, value in tensors(output, name):
                if not value.is_floating_point():
                    continue
                if checked:
                    _require_finite(value, called, path)
                for observer in observers:
                    observer(called, path, value)


def close_match(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return ` (did you mean "x"?)` for the known name closest to `name`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{found[0]}"?)' if found else ""


@contextlib.contextmanager
def _watched(stage: Stage, arguments: dict[str, Any], called: str) -> Iterator[None]:
    """Refuse undeclared writes into inputs and buffers, and draws from torch's global generators."""
    if torch.compiler.is_compiling():
        yield
        return
    contract = stage.contract
    watched = [
        (path, value, value._version)
        for path, value in [*_named_tensors(arguments), *stage.named_buffers()]
        if not value.is_inference() and not covers(contract.mutated, path)
    ]
    before = None if "rng" in contract.effects else _random_state()
    yield
    for path, value, version in watched:
        if value._version != version:
            raise ContractError(
                f'stage "{called}" writes into "{path}", which its contract does not declare; other stages '
                f"and recomputed steps see the changed value. Clone it first, or declare "
                f'effects=("mutates:{path}",)'
            )
    if before is not None and not all(map(torch.equal, before, _random_state())):
        raise ContractError(
            f'stage "{called}" draws from a global random generator, which its contract does not declare; a '
            f'recomputed step would draw other numbers. Take a "generator" as an input and draw from it, or '
            f'declare effects=("rng",)'
        )


def _named_tensors(values: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return [pair for name, value in values.items() for pair in tensors(value, name)]


def _random_state() -> list[torch.Tensor]:
    states = [torch.default_generator.get_state()]
    if (
        torch.cuda.is_available()
        and torch.cuda.is_initialized()
        and not torch.cuda.is_current_stream_capturing()
    ):
        states.append(torch.cuda.get_rng_state())
    return states


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {name: _detached(item) for name, item in value.items()}
    return value


def _require_finite(value: torch.Tensor, called: str, path: str) -> None:
    bad = ~torch.isfinite(value)
    if not bad.any():
        return
    where = f" in world {int(bad.flatten(1).any(1).nonzero()[0, 0])}" if bad.ndim > 1 else ""
    if bad.ndim == 1:
        where = f" in world {int(bad.nonzero()[0, 0])}"
    raise NonFiniteError(
        f'stage "{called}", output "{path}" is not finite{where}: {int(value.isnan().sum())} NaN and '
        f"{int(value.isinf().sum())} infinite of {value.numel()} values; "
        f"every gradient through it would be NaN. Look at the inputs of this stage in that world"
    )


def _describe(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
