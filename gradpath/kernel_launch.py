"""Launching Warp kernels from torch: element types, dtype specializations, streams, CPU threads.

Part of `gradpath.kernels`, which exports these names.
"""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, cast

import torch
import warp as wp

from gradpath.errors import InputError, ShapeError

if wp.config.log_level == wp.LOG_INFO:  # Warp's default: a line on standard output for every module it loads
    wp.config.log_level = wp.LOG_WARNING

SCALARS: dict[torch.dtype, Any] = {torch.float32: wp.float32, torch.float64: wp.float64}

# Trailing torch axes of one array element.
ELEMENT_SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "int32": (),
    "vec2": (2,),
    "vec3": (3,),
    "vec4": (4,),
    "quat": (4,),
    "transform": (7,),
    "mat33": (3, 3),
}

Factory = Callable[[Any], wp.Kernel]


def element_type(element: str, scalar: Any) -> Any:
    """Return the Warp type of an element name ("vec3", "transform", ...) with components of type `scalar`."""
    if element == "scalar":
        return scalar
    if element == "int32":
        return wp.int32
    if element == "quat":
        return wp.types.quaternion(scalar)
    if element == "transform":
        return wp.types.transformation(scalar)
    if element == "mat33":
        return wp.types.matrix((3, 3), scalar)
    if element in ("vec2", "vec3", "vec4"):
        return wp.types.vector(int(element[-1]), scalar)
    raise InputError(f"unknown element type {element!r}; the known ones are {', '.join(ELEMENT_SHAPES)}")


# Warp builds and compiles kernels without a lock of its own; user threads may need the same one at once.
_first_use = threading.RLock()
_loaded: set[tuple[wp.Kernel, torch.device, int | None]] = set()


def specialize(make: Factory, dtype: torch.dtype) -> wp.Kernel:
    """Return the kernel that the factory `make` builds for a torch float dtype; built once per dtype.

    Raises:
        ShapeError: `dtype` is neither torch.float32 nor torch.float64.
    """
    if dtype not in SCALARS:
        raise ShapeError(
            f"kernels run in torch.float32 or torch.float64, got {dtype}; convert the tensors with .to()"
        )
    with _first_use:
        return _build(make, dtype)


@functools.cache
def _build(make: Factory, dtype: torch.dtype) -> wp.Kernel:
    wp.init()
    _loaded.clear()  # a kernel that joins a module makes Warp compile that module again
    return make(SCALARS[dtype])


def _load(kernel: wp.Kernel, device: torch.device, block_dim: int | None) -> None:
    """Compile a kernel where that has not happened, in one thread at a time."""
    key = (kernel, device, block_dim)
    if key in _loaded:
        return
    with _first_use:
        if key not in _loaded:  # another thread may have come first
            if device.type == "cuda":
                _follow_mode(kernel.module)
            kernel.module.load(wp.device_from_torch(device), 1 if device.type == "cpu" else block_dim or 256)
            _loaded.add(key)


_ordered = False
_config = wp.DeterministicMode.NOT_GUARANTEED


def is_deterministic() -> bool:
    """Return whether `set_deterministic` has atomic operations on a GPU done in a fixed order."""
    return _ordered


def set_deterministic(on: bool) -> None:
    """Have atomic operations on a GPU done in a fixed order, or not, in kernels that exist already, too."""
    global _ordered, _config
    if on == _ordered:
        return
    _ordered = on
    # Without a GPU the mode would change nothing but the names under which compiled kernels are found again.
    if torch.cuda.is_available():
        if on:
            _config = wp.config.deterministic
        wp.config.deterministic = max(_config, wp.DeterministicMode.RUN_TO_RUN) if on else _config
    with _first_use:
        _loaded.clear()


def _follow_mode(module: wp.Module) -> None:
    """Give a module the mode that holds now, which it may have been made before; Warp then compiles it again."""
    least = wp.DeterministicMode.RUN_TO_RUN if _ordered else wp.DeterministicMode.NOT_GUARANTEED
    mode = max(wp.config.deterministic, least)
    if module.options["deterministic"] != mode:
        wp.set_module_options({"deterministic": mode}, module)


def array(tensor: torch.Tensor, dtype: Any) -> wp.array:
    """Wrap a contiguous torch tensor as a Warp array of element type `dtype`, sharing its memory.

    Raises:
        ShapeError: the tensor is not contiguous; the kernel would read other elements than torch shows.
    """
    if not tensor.is_contiguous():
        raise ShapeError(
            f"a kernel needs contiguous memory, got strides {tensor.stride()}; call .contiguous() first"
        )
    wp.init()
    return cast(wp.array, wp.from_torch(tensor.detach(), dtype=dtype, requires_grad=False))


@functools.cache
def _wrap_stream(device: torch.device, handle: int) -> wp.Stream:
    return wp.stream_from_torch(torch.cuda.current_stream(device))


def _current_stream(device: torch.device) -> wp.Stream | None:
    """Torch's current stream. Asked for at every launch: autograd runs backward passes in its own thread."""
    if device.type != "cuda":
        return None
    return _wrap_stream(device, torch.cuda.current_stream(device).cuda_stream)


def launch(
    kernel: wp.Kernel,
    dim: int | Sequence[int],
    args: Sequence[Any],
    device: torch.device,
    adjoint: Sequence[Any] | None = None,
    block_dim: int | None = None,
) -> None:
    """Launch `kernel` on torch's current stream (CUDA) or in the calling thread (CPU); never on a Warp tape.

    Args:
        kernel: The kernel, from `specialize`.
        dim: Number of threads, or a tuple of them.
        args: All kernel arguments in order.
        device: The torch device that owns the arrays.
        adjoint: When given, runs the adjoint kernel, which adds into these gradient arrays: one entry per
            argument, None for an array without gradient, 0 for a scalar. Those of outputs may be overwritten.
        block_dim: Threads per block on CUDA.
    """
    _load(kernel, device, block_dim)
    wp.launch(
        kernel,
        dim,
        inputs=list(args),
        adj_inputs=[] if adjoint is None else list(adjoint),
        adjoint=adjoint is not None,
        device=wp.device_from_torch(device),
        stream=_current_stream(device),
        record_tape=False,
        block_dim=block_dim,
    )


_threads: int | None = None


def get_threads() -> int:
    """Return how many threads `launch_worlds` splits a launch over on the CPU: by default, one per usable core.

    Torch's own number does not matter here. Where small networks alternate with kernels, `torch.set_num_threads(1)`
    is faster: torch's idle workers spin for a while, on the cores that the kernels want.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _threads or usable


def set_threads(count: int | None) -> None:
    """Set the number of threads of `launch_worlds`; None goes back to one per usable core.

    Raises:
        InputError: fewer than one.
    """
    global _threads
    if count is not None and count < 1:
        raise InputError(f"set_threads: expected at least 1, got {count}")
    _threads = count


@functools.lru_cache(maxsize=1)
def _thread_pool(process: int) -> ThreadPoolExecutor:
    """One pool per process: a forked child inherits the object but none of its threads."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="gradpath-kernel")


def launch_worlds(
    kernel: wp.Kernel,
    worlds: int,
    args: Sequence[Any],
    device: torch.device,
    dim: Sequence[int] = (),
    block_dim: int | None = None,
) -> None:
    """Launch `kernel` over all worlds, on the CPU split over `get_threads()` threads; the result is the same.

    The first argument of the kernel is `first: int`, passed by this function; its world is `first` plus the
    first thread index. Worlds must not write to common memory: additions on the CPU are not atomic. A kernel may count
    finer items than worlds, such as the strips or faces of each, as long as this holds for them.

    Args:
        kernel: The kernel, from `specialize`.
        worlds: Number of worlds B.
        args: The kernel arguments after `first`.
        device: The torch device that owns the arrays.
        dim: Further launch axes after the world.
        block_dim: Threads per block on CUDA.
    """
    if worlds == 0 or 0 in dim:
        return
    parts = min(get_threads(), worlds) if device.type == "cpu" else 1
    if parts == 1:
        launch(kernel, (worlds, *dim), (0, *args), device, block_dim=block_dim)
        return
    bounds = [worlds * part // parts for part in range(parts + 1)]

    def run(first: int, end: int) -> None:
        launch(kernel, (end - first, *dim), (first, *args), device, block_dim=block_dim)

    pool = _thread_pool(os.getpid())
    others = [pool.submit(run, first, end) for first, end in itertools.pairwise(bounds[1:])]
    try:
        run(bounds[0], bounds[1])
    finally:
        wait(others)  # they write into arrays that the caller may let go
    for other in others:
        other.result()
