"""What does each kernel need on a GPU? Registers, stack and code for sm_90, from the compiler, without a GPU.

python benchmarks/kernel_resources.py [--arch 90] [--json resources.json]
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from gradpath import cubin, distances, kernels, render, sim

AREAS = (distances, render, sim)  # importing them registers their operations


def measure(arch: int) -> list[dict[str, str | int]]:
    """Compile every kernel of the library in both float types; one row per entry point."""
    rows: list[dict[str, str | int]] = []
    for dtype in (torch.float32, torch.float64):
        floats = str(dtype).removeprefix("torch.")
        operations: dict[Any, dict[str, str]] = {}  # of each module, those that launch its kernels, by kernel
        for name, kernel in kernels.all_kernels(dtype):
            launched = operations.setdefault(kernel.module, {})
            launched.setdefault(kernel.key.rpartition("__locals__")[2], name)
        modules = {kernel.module: kernel for _, kernel in kernels.all_kernels(dtype)}
        for module, kernel in modules.items():
            for entry in cubin.kernel_resources(kernel, arch):
                name = operations[module].get(entry.name.split()[0], "")
                rows.append({"operation": name, "floats": floats, **dataclasses.asdict(entry)})
    return rows


def main() -> None:
    """Print the table as markdown; write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for sm_90")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    rows = measure(options.arch)
    print("| operation | kernel | floats | registers | stack [B] | code [KiB] |")
    print("|---|---|---|---:|---:|---:|")
    for row in rows:
        code = int(row["code"]) / 1024
        named = f"| {row['operation']} | {row['name']} | {row['floats']} "
        print(f"{named}| {row['registers']} | {row['stack']} | {code:.1f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"arch": options.arch, "kernels": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
