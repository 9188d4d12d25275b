"""Storage: a pipeline and its training state as a folder of plain files.

    pipeline.json                what to build: classes, arguments, wires, contracts; checksums of the others
    weights.safetensors          parameters, buffers, and tensors among the arguments
    train_state.safetensors      optimizer, scheduler, generators, step

No pickle. A save is one atomic step: new tensor files are first written under pending names (`.NAME.new`);
replacing pipeline.json, which holds their checksums, is the step; then the pending files take their names. A
reader takes each file under whichever of its two names has the checksum. So an interruption at any point leaves
either the old state or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import nn

import gradpath
from gradpath.codec import Decoder, Encoder, class_name
from gradpath.errors import InputError, LoadError
from gradpath.migrations import FORMAT, migrate
from gradpath.pipeline import Pipeline
from gradpath.stage import Stage
from gradpath.versions import versions

_MANIFEST, _WEIGHTS, _TRAIN_STATE = "pipeline.json", "weights.safetensors", "train_state.safetensors"


class _Scheduler(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class TrainState:
    """What `save` was given besides model, optimizer, scheduler and generators."""

    step: int | None
    extra: Any


def save(
    model: Stage,
    folder: str | Path,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: _Scheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    step: int | None = None,
    extra: Any = None,
) -> None:
    """Write a stage, usually a pipeline or a rollout, and its training state to a folder.

    The save is atomic: an interrupted one leaves the previous state of the folder loadable. Other files in
    the folder are not touched.

    Args:
        model: The stage. It and the stages in it are rebuilt from their constructor arguments.
        folder: Created where it does not exist.
        optimizer: Its `state_dict()` is stored.
        scheduler: Likewise.
        generators: By name; their state is stored. Torch's global generators are not.
        step: How far training has come.
        extra: Anything of numbers, text, lists, dicts and tensors.

    Raises:
        InputError: an argument of a stage that cannot be saved; names the stage and the argument.
    """
    weights, manifest = _describe(model)
    state = Encoder()
    train_state = {
        "optimizer": state.encode(optimizer and optimizer.state_dict(), "optimizer"),
        "scheduler": state.encode(scheduler and scheduler.state_dict(), "scheduler"),
        "generators": state.encode(
            {name: generator.get_state() for name, generator in (generators or {}).items()}, "generators"
        ),
        "step": step,
        "extra": state.encode(extra, "extra"),
    }
    metadata = {"gradpath": json.dumps(train_state, allow_nan=False)}
    files = {_WEIGHTS: _pack(weights), _TRAIN_STATE: _pack(state.tensors, metadata)}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
    }
    manifest["checksum"] = _checksum(manifest)
    _write(Path(folder), files, json.dumps(manifest, indent=2, allow_nan=False) + "\n")


def load(folder: str | Path, *, allow: Sequence[str] = ()) -> Stage:
    """Rebuild the stage of a saved run, on the CPU, with its weights, buffers, modes and ties.

    The random state of torch is left as it was.

    Args:
        folder: Written by `save`.
        allow: Modules outside gradpath whose classes may be built, for example `("my_robot",)`. Loading runs
            their code; that of gradpath is always allowed.

    Raises:
        LoadError: files that are missing, damaged, edited or newer; a class that is not allowed, renamed or
            changed. Says what to do.
    """
    manifest, files = _read(Path(folder))
    tensors = safetensors.torch.load(files[_WEIGHTS])
    with torch.random.fork_rng(devices=[]):
        model = Decoder(tensors, allow).decode(manifest["model"])
    _restore(model, manifest["state"], tensors)
    return model


def load_train_state(
    folder: str | Path,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: _Scheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
) -> TrainState:
    """Restore the training state of a saved run, in place.

    ```python
    model = gp.load(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    step = gp.load_train_state(folder, optimizer=optimizer).step
    ```

    Args:
        folder: Written by `save`.
        optimizer: Built as for the saved run, on the parameters of the loaded model.
        scheduler: Likewise.
        generators: By the names under which they were saved.

    Raises:
        LoadError: files that are missing, damaged or newer, something asked for that was not saved, or an
            optimizer for other parameters.
    """
    _, files = _read(Path(folder))
    data = files[_TRAIN_STATE]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    saved = Decoder(safetensors.torch.load(data)).decode(json.loads(header["__metadata__"]["gradpath"]))
    for name, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        if target is None:
            continue
        if saved[name] is None:
            raise LoadError(f"{folder} was saved without {name}; save it with gp.save(..., {name}={name})")
        try:
            target.load_state_dict(saved[name])
        except (ValueError, KeyError) as error:
            raise LoadError(
                f"the {name} of {folder} does not fit: {error}. Build it as in the saved run"
            ) from error
    for name, generator in (generators or {}).items():
        if name not in saved["generators"]:
            known = ", ".join(saved["generators"]) or "none"
            raise LoadError(f'{folder} has no generator "{name}"; generators are {known}')
        generator.set_state(saved["generators"][name])
    return TrainState(saved["step"], saved["extra"])


def _describe(model: Stage) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a model and the manifest without checksums."""
    if not isinstance(model, Stage):
        raise InputError(
            f"only a Stage knows how it was built; got a {type(model).__name__}, put it in a Stage"
        )
    encoder = Encoder()
    built = encoder.encode(model, "config")
    weights = dict(encoder.tensors)
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name}: a {type(tensor).__name__} cannot be saved; keep it in a buffer")
        if first.setdefault(id(tensor), name) == name:
            weights[name] = tensor
        else:
            aliases[name] = first[id(tensor)]
    modules = dict(model.named_modules())
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "model": built,
        "state": {
            "tensors": [name for name in state if name not in aliases],
            "aliases": aliases,
            "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
            "evaluating": [name for name, module in modules.items() if not module.training],
            "rebuilt": {
                name: str(buffer.dtype).removeprefix("torch.")
                for name, buffer in model.named_buffers()
                if name not in state
            },
        },
        "stages": {
            name: {"class": class_name(module), "contract": module.contract.json()}
            for name, module in modules.items()
            if isinstance(module, Stage)
        },
        "graphs": {name: m.graph().json() for name, m in modules.items() if isinstance(m, Pipeline)},
    }
    return weights, manifest


def _restore(model: nn.Module, saved: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a rebuilt model its weights, ties, modes and frozen parameters."""
    for alias, name in saved["aliases"].items():
        _tie(model, alias, name)
    state = model.state_dict(keep_vars=True)
    if set(state) != {*saved["tensors"], *saved["aliases"]}:
        names = {*state} ^ {*saved["tensors"], *saved["aliases"]}
        raise LoadError(
            f"the rebuilt model and the saved weights differ in {', '.join(sorted(names))}: the code of its stages "
            f"has changed, or submodules were replaced after construction. Use the version that saved the run"
        )
    for name in saved["tensors"]:
        _assign(name, state[name], tensors[name])
    buffers = dict(model.named_buffers())
    for name, dtype in saved["rebuilt"].items():
        if name in buffers and buffers[name].dtype != getattr(torch, dtype):
            buffers[name].data = buffers[name].to(getattr(torch, dtype))
    frozen, evaluating = set(saved["frozen"]), set(saved["evaluating"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        module.training = name not in evaluating


def _assign(name: str, target: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(target, nn.Parameter) and target.shape != value.shape:
        raise LoadError(
            f'parameter "{name}" was saved as {tuple(value.shape)}, and is built as {tuple(target.shape)}: the '
            f"code of its stage has changed. Use the version that saved the run"
        )
    # In place where possible: what a constructor has wrapped, such as Warp arrays, stays the same memory.
    if target.dtype == value.dtype and target.shape == value.shape and 0 not in target.stride():
        with torch.no_grad():
            target.copy_(value)
    else:
        target.data = value.clone()


def _tie(model: nn.Module, alias: str, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    try:
        tensor = getattr(model.get_submodule(owner), leaf)
        owner, _, leaf = alias.rpartition(".")
        module = model.get_submodule(owner)
    except AttributeError as error:
        raise LoadError(f'"{alias}" was tied to "{name}": {error}. Its code has changed since') from error
    if getattr(module, leaf, None) is not tensor:
        setattr(module, leaf, tensor)


def _pack(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    # Cloned, because views of one memory are separate tensors in the file.
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata
    )


def _written_by(manifest: Mapping[str, Any]) -> str:
    """The version of gradpath that a manifest of any format names."""
    versions = manifest.get("versions")
    found = versions.get("gradpath") if isinstance(versions, dict) else manifest.get("gradpath")
    return str(found or "(it does not say which)")


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _pending(folder: Path, name: str) -> Path:
    return folder / f".{name}.new"


def _write(folder: Path, files: Mapping[str, bytes], manifest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _finish_interrupted(folder)
    for name, data in files.items():
        _write_synced(_pending(folder, name), data)
    _write_synced(_pending(folder, _MANIFEST), manifest.encode())
    for name in (_MANIFEST, *files):
        os.replace(_pending(folder, name), folder / name)
        _sync(folder)


def _finish_interrupted(folder: Path) -> None:
    """Give pending files their names where the manifest already asks for them, before they are overwritten."""
    pending = [name for name in (_WEIGHTS, _TRAIN_STATE) if _pending(folder, name).exists()]
    if not pending or not (folder / _MANIFEST).exists():
        return
    try:
        entries = json.loads((folder / _MANIFEST).read_text())["files"]
    except (ValueError, KeyError):
        return  # A damaged manifest asks for nothing that could still be saved.
    for name in pending:
        path = _pending(folder, name)
        if hashlib.sha256(path.read_bytes()).hexdigest() == entries.get(name, {}).get("sha256"):
            os.replace(path, folder / name)
    _sync(folder)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read and verify all files; again where another process saved in between."""
    while True:
        text = _manifest_text(folder)
        try:
            manifest = _parse_manifest(folder, text)
            return manifest, {
                name: _verified(folder, name, entry) for name, entry in manifest["files"].items()
            }
        except LoadError:
            if _manifest_text(folder) == text:
                raise


def _manifest_text(folder: Path) -> str:
    try:
        return (folder / _MANIFEST).read_text()
    except OSError as error:
        raise LoadError(
            f"{folder} is not a saved run: {_MANIFEST} cannot be read ({error.strerror}); give the folder that "
            f"gp.save was given"
        ) from error
    except UnicodeDecodeError as error:
        raise LoadError(f"{folder / _MANIFEST} is damaged ({error}); restore it from a copy") from error


def _parse_manifest(folder: Path, text: str) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise LoadError(
            f"{path} is damaged: {error}; restore it from a copy, or save the run again"
        ) from error
    if not (isinstance(manifest, dict) and type(manifest.get("format")) is int and manifest["format"] >= 1):
        raise LoadError(f"{path} does not hold a saved run; give the folder that gp.save was given")
    if manifest["format"] > FORMAT:
        raise LoadError(
            f"{path} has format {manifest['format']}, written by gradpath {_written_by(manifest)}; this is gradpath "
            f"{gradpath.__version__}, which reads up to {FORMAT}. Update gradpath"
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise LoadError(
            f"{path} was changed after it was saved: its checksum does not match. Restore it from a copy; to "
            f"change the pipeline, load it, build another one, and save that"
        )
    return migrate(manifest)


def _verified(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    found = []
    for path in (folder / name, _pending(folder, name)):
        if path.exists():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == entry["sha256"]:
                return data
            found.append(len(data))
    if not found:
        raise LoadError(f"{folder / name} is missing; restore it from a copy, or save the run again")
    size = f"{found[0]} of {entry['bytes']} bytes" if found[0] != entry["bytes"] else "another checksum"
    raise LoadError(f"{folder / name} is damaged: {size}; restore it from a copy, or save the run again")
