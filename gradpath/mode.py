"""The mode: which version of a relaxed operation runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from gradpath.errors import InputError

MODES = ("soft", "hard", "straight_through")

_current: ContextVar[str] = ContextVar("gradpath_mode", default="soft")


def mode(name: str) -> contextlib._GeneratorContextManager[None]:
    """Run relaxed operations in one mode within a `with` block or a decorated function; the inner one wins.

    Args:
        name: `"soft"`: the relaxed operation and its gradient, the default. `"hard"`: the operation that a
            robot runs. `"straight_through"`: hard values forward, the gradient of the soft ones backward.

    Raises:
        InputError: another name; says the known ones.

    This is not `Module.train()`: a policy may be trained through hard operations and evaluated through soft
    ones. The mode belongs to the thread (a context variable); whoever recomputes a step in another thread
    enters it again with `mode(current_mode())`, read in the first.
    """
    if name not in MODES:
        raise InputError(f'mode "{name}" is not known; it is one of {", ".join(MODES)}')
    return _enter(name)


def current_mode() -> str:
    """Return the mode that relaxed operations run in here: `"soft"` where none was chosen."""
    return _current.get()


@contextlib.contextmanager
def _enter(name: str) -> Iterator[None]:
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)
