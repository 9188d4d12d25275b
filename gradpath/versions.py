"""The versions that numbers depend on: of the libraries, of Python, and what machine it is."""

from __future__ import annotations

import os
import platform

import numpy as np
import torch
import warp as wp

import gradpath


def versions() -> dict[str, str]:
    """Return the versions that the numbers of a run depend on."""
    return {
        "gradpath": gradpath.__version__,
        "torch": torch.__version__,
        "warp": wp.config.version,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
