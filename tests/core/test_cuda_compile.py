"""Every kernel compiles for sm_90, with or without a GPU, and keeps its variables in registers."""

import ast
from pathlib import Path

import pytest
import torch
import warp as wp

from gradpath import distances, kernels, render, sim
from gradpath.cubin import kernel_resources, read_cubin
from gradpath.errors import InputError

ROOT = Path(__file__).parents[2]
AREAS = (distances, render, sim)  # importing them registers their operations
FLOATS = {"float32": torch.float32, "float64": torch.float64}
# One kernel of each module: what is compiled is the module.
MODULES = {
    (kernel.module.name, dtype): (f"{name}-{dtype}-{kernel.module.name}", kernel)
    for dtype, torch_dtype in FLOATS.items()
    for name, kernel in kernels.all_kernels(torch_dtype)
    if kernels.registry[name].module.startswith("gradpath.")
}
MODULES = dict(MODULES.values())
# Bytes per thread. float32 is what runs on a GPU; float64 checks gradients, and may be slow.
MAX_STACK = {"float32": 512, "float64": 2048}


def _parameter(name: str):
    return pytest.param(name, marks=pytest.mark.slow if "float64" in name else ())


@pytest.mark.parametrize("name", [_parameter(name) for name in MODULES])
def test_kernel_compiles_and_fits(name, record_property):
    entries = kernel_resources(MODULES[name], arch=90)
    assert entries
    for entry in entries:
        record_property(
            entry.name, f"{entry.registers} registers, {entry.stack} B stack, {entry.code} B code"
        )
        assert 0 < entry.registers <= 255 and entry.code > 0
        limit = MAX_STACK[name.split("-")[1]]
        assert entry.stack <= limit, f"{entry.name} needs {entry.stack} B of stack; split it"


def test_every_kernel_of_the_sources_is_registered():
    written = {
        node.name
        for area in ("gradpath", "sim", "render", "perception", "planners")
        for path in (ROOT / area).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith("wp.kernel") for decorator in node.decorator_list)
    }
    compiled = {
        key.rpartition("__locals__")[2] for kernel in MODULES.values() for key in kernel.module.kernels
    }
    assert not written - compiled, (
        "register the operations of these kernels, so that they are compiled and tested"
    )


def test_a_kernel_that_spills_is_seen():
    vec256 = wp.types.vector(256, wp.float32)

    @wp.kernel(module="unique", enable_backward=False)
    def _spill(x: wp.array(dtype=wp.float32), pick: wp.array(dtype=wp.int32), y: wp.array(dtype=wp.float32)):
        values = vec256()
        for i in range(256):
            values[i] = x[i] * x[i]
        y[wp.tid()] = values[pick[wp.tid()]]

    wp.init()
    (entry,) = kernel_resources(_spill)
    assert entry.stack >= 1024 and entry.name == "_spill forward"


def test_what_is_not_a_binary_is_refused():
    with pytest.raises(InputError, match="ELF"):
        read_cubin(b"PTX, really")
