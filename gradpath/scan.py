"""`scan`: a loop over time for any PyTorch step, differentiable within a bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradpath import tree
from gradpath.errors import GradpathError, InputError, ShapeError
from gradpath.loop import Loop
from gradpath.loop_progress import Watcher
from gradpath.memory import Memory, MemoryLike
from gradpath.recording import Recorder
from gradpath.schedule import Schedule

_UNBOUNDED = sys.maxsize
"""The most steps of a loop whose number of steps only its condition knows."""


def scan(
    step: Callable[..., tuple[Any, Any]],
    carry: tree.Tree,
    xs: tree.Tree = None,
    length: int | None = None,
    *,
    memory: MemoryLike = "all",
    condition: Callable[[tree.Tree], Any] | None = None,
    cut: int | None = None,
    constants: tree.Tree = None,
    generators: Iterable[torch.Generator] = (),
    decay: float | None = None,
    dt: float | None = None,
    check_finite: bool = False,
    recorder: Recorder | None = None,
    on_step: Callable[[int], None] | None = None,
    progress: bool | str = False,
) -> tuple[tree.Tree, tree.Tree]:
    """Run `carry, y = step(carry, x)` over time, and send gradients back through it within a stated memory.

    ```python
    def step(h, x):
        h = torch.tanh(cell(x) + recurrent(h))
        return h, head(h)

    h, ys = gp.scan(step, h0, xs, memory=20)     # xs: (T, B, features), ys: (T, B, outputs)
    ```

    Args:
        step: A function or module. It may read parameters, closures and globals; they are found.
        carry: What goes from step to step: a tree (dicts, lists, tuples) of tensors, and of anything else, which
            is handed on. Structure and shapes stay the same.
        xs: A tree of tensors whose first axis is time; each step gets one slice. None: each step gets None.
        length: The number of steps T, where `xs` does not say it.
        memory: `"all"` keeps the tape of every step. A number keeps at most that many carries and recomputes
            the rest by the schedule with the fewest extra steps, see `gradpath.schedule`. A size such as `"200MB"`
            is a budget in bytes: two steps are measured, and the loop keeps the states and tapes that fit with the
            fewest extra steps. `xs`, their gradient and `ys` are not charged. States of a very long loop may be
            stored in files or beside a GPU: see `gradpath.memory.Memory`.
        condition: Called with the carry before each step; the loop goes on while it is true. The number of steps need
            not be known then: states are placed on the way, and `memory` bounds their number or bytes all the same.
            `xs` or `length` say how many steps there are at most. A loop without any step gives the carry back, and
            None for the y.
        cut: Truncate the gradient: none goes back from step `n * cut` to the step before it, so that each crosses at
            most `cut` steps. The values do not change.
        constants: A tree that all steps read. Where given, the step is called as `step(carry, x, constants)`.
        generators: Generators that the step draws from and that cannot be found in it, in the carry or in the
            constants; `torch.default_generator` for steps that draw from the global one.
        decay: A factor in [0, 1] on the gradient of the carry at each step, so that a gradient that crossed n
            steps has the factor `decay**n`. It shortens the memory of learning; the values do not change.
        dt: The time of a step [s]. Where given, `decay` is per second.
        check_finite: Refuse gradients that are NaN or infinite, once the backward pass is through.
        recorder: Measures gradients along the way; `Rollout` gives one.
        on_step: Called with the number of each step of the forward pass, once it is done.
        progress: Show a bar on standard error, for the forward and for the backward pass; a text is its title.

    Returns:
        The last carry, and the y of all steps stacked along a new first axis.

    Raises:
        CaptureError: the step uses a tensor whose gradient would be lost.
        ContractError: the step returns another structure, changes its carry or a buffer in place, or draws from
            the global generator although it must be recomputed; a step that is measured or recomputed gives
            another value than it gave the first time, because it reads Python state, numpy or `random`.
        ShapeError: the carry or y changes its shape, or `xs` has leaves of different length.
        BudgetError: a memory that cannot work; of a budget, tells the smallest that would.
        NonFiniteError: with `check_finite`, in the backward pass; names step and world.

    Gradients: exact to the initial carry, `xs`, constants and captured tensors; `decay` scales them. They are
    summed step by step, last step first, so they are the same to the bit for every `memory` on the CPU, random
    numbers included. Backward may run several times with `retain_graph=True`; double backward is an error.
    Steps are recomputed under the mode and autocast settings of the forward pass.
    """
    length = _length(xs, length, condition is not None)
    memory = Memory.of(memory)
    decay = _per_step(decay, dt)
    if cut is not None and cut < 1:
        raise InputError(f"cut={cut}: gradients are cut after a number of steps; pass cut >= 1, or None")
    if check_finite and recorder is None:
        from gradpath.recorder import GradientRecorder

        recorder = GradientRecorder(check_finite=True)
    known = condition is None
    if known:
        memory.fixed(length)
    elif recorder is not None and length == _UNBOUNDED:
        raise InputError(
            "gradients are measured step by step, into memory for all: with a condition, pass length="
        )
    title = progress if isinstance(progress, str) else "scan" if progress else None
    watcher = Watcher(length if known else None, on_step, title) if on_step or title else None
    loop = Loop(
        step, carry, xs, constants,
        length=length, condition=condition, generators=generators, decay=decay, cut=cut, recorder=recorder,
        watcher=watcher,
    )  # fmt: skip
    differentiable = torch.is_grad_enabled() and loop.needs_gradient()
    try:
        last = loop.unshared(_forward(loop, memory) if differentiable else loop.run())
    finally:
        if watcher is not None:
            watcher.stop()
    if loop.length == 0:
        return tree.map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, carry), None
    if not differentiable:
        return tree.unflatten(last, loop.carry.spec), loop.ys.tree(loop.ys.take())
    outputs = [*last, *loop.ys.take()]
    index = [i for i, output in enumerate(outputs) if isinstance(output, Tensor)]
    results = _Scan.apply(loop, [outputs[i] for i in index], index, len(outputs), *loop.inputs())
    for i, result in zip(index, results, strict=True):
        outputs[i] = result
    split = len(last)
    return tree.unflatten(outputs[:split], loop.carry.spec), loop.ys.tree(outputs[split:])


def _forward(loop: Loop, memory: Memory) -> list[Any]:
    """Run a loop within a memory, ready to be reversed."""
    plan = memory.schedule(loop)
    store = memory.open_store(loop) if isinstance(plan, Schedule) and plan.stored else None
    last = loop.forward(plan, memory.begin(loop.length), store)
    memory.ran(loop)
    return last


def _per_step(decay: float | None, dt: float | None) -> float | None:
    """The factor on the gradient per step."""
    if decay is None:
        return None
    if not 0.0 <= decay <= 1.0:
        raise InputError(
            f"decay={decay}: a factor per step between 0 (no gradient through time) and 1 (all of it)"
        )
    if dt is not None and not dt > 0.0:
        raise InputError(f"dt={dt}: the time of a step in seconds, above 0, for a decay per second")
    return decay if dt is None else decay**dt


def _length(xs: tree.Tree, length: int | None, has_condition: bool) -> int:
    """The number of steps, or with a condition the most that there can be."""
    flat = tree.Flat.of(xs, "xs")
    for name, leaf in zip(flat.names, flat.leaves, strict=True):
        if not isinstance(leaf, Tensor):
            if leaf is None or isinstance(leaf, torch.Generator):
                continue
            raise InputError(
                f"{name} is a {type(leaf).__name__}; xs holds tensors with time as their first axis"
            )
        if leaf.ndim == 0 or (length is not None and leaf.shape[0] != length):
            raise ShapeError(
                f"{name} has shape {tuple(leaf.shape)}; its first axis is time, with {length or 'one'} step(s): "
                "length and all of xs must agree"
            )
        length = leaf.shape[0]
    if length is None and not has_condition:
        raise InputError(
            "scan was given neither xs nor length, so the number of steps is not known; pass length=, or a condition="
        )
    return _UNBOUNDED if length is None else length


class _Scan(torch.autograd.Function):
    """A loop that has run, as one node of the graph outside."""

    @staticmethod
    def forward(
        ctx: Any, loop: Loop, outputs: list[Tensor], index: list[int], count: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.loop, ctx.index, ctx.count = loop, index, count
        ctx.mark_non_differentiable(*[t for t in outputs if not tree.is_differentiable(t)])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        loop: Loop = ctx.loop
        carry_count = len(loop.carry.names)
        every: list[Tensor | None] = [None] * ctx.count
        for i, grad in zip(ctx.index, grads, strict=True):
            every[i] = grad
        keep = _graph_is_kept()
        twice = torch.is_grad_enabled()  # that is, with create_graph=True
        inputs = loop.inputs() if twice else []
        with torch.no_grad():
            results = loop.backward(every[:carry_count], every[carry_count:], keep)
        if twice:
            results = [None if grad is None else _Once.apply(grad, *inputs) for grad in results]
        return (None, None, None, None, *results)


def _graph_is_kept() -> bool:
    """Whether the backward pass that is running keeps its graph; where torch does not say, suppose that it does."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


class _Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated again: torch's once_differentiable lets some cases pass as zero."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise GradpathError(
            "the gradient of a scan was differentiated again, which scan does not support; take second derivatives "
            "of the step itself, or by differences of gradients"
        )
