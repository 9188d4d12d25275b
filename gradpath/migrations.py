"""The format of saved runs, and how files of older formats are read: step by step, each to the next one.

A format is never changed without a number of its own and a function here. What a function needs of older classes or
arguments it holds itself: it must still work when the code has moved on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 2
"""The format that is written; older ones are migrated when read, newer ones are refused."""

Manifest = dict[str, Any]


def migrate(manifest: Manifest) -> Manifest:
    """Return the content of a pipeline.json of an older format as the current one has it; the file stays."""
    while manifest["format"] < FORMAT:
        version = manifest["format"]
        manifest = {**MIGRATIONS[version](manifest), "format": version + 1}
    return manifest


def _gather_versions(manifest: Manifest) -> Manifest:
    """From 1 to 2: the versions of all libraries stand in one place; format 1 knew two of them."""
    rest = {name: value for name, value in manifest.items() if name not in ("gradpath", "torch")}
    return {**rest, "versions": {"gradpath": manifest["gradpath"], "torch": manifest["torch"]}}


MIGRATIONS: dict[int, Callable[[Manifest], Manifest]] = {1: _gather_versions}
"""From each older format to the next."""
