"""Registers, stack and code size of kernels compiled for a CUDA architecture, without a GPU.

Warp carries NVRTC, so a kernel can be compiled for a device that is not there. What the compiler decided is read
from the binary (ELF): a kernel that spills its variables to the stack runs many times slower, and this shows it.
"""

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import warp as wp

from gradpath.errors import InputError

# Attributes of the section .nv.info, each a symbol index and a value.
_FRAME_SIZE, _REGISTER_COUNT = 0x11, 0x2F
_INFO_WITH_SIZE = 4  # format: a 16-bit size, then that many bytes


@dataclass(frozen=True)
class Resources:
    """What one entry point of a kernel needs.

    Attributes:
        name: Kernel name, with "forward" or "backward".
        registers: Registers per thread; 255 is the most there is.
        stack: Stack per thread [bytes]; spilled or indexed local variables.
        code: Machine code [bytes].
    """

    name: str
    registers: int
    stack: int
    code: int


def kernel_resources(kernel: wp.Kernel, arch: int = 90) -> list[Resources]:
    """Compile a kernel's module for `sm_<arch>` and return what each of its entry points needs.

    Raises:
        InputError: the module does not compile; the compiler's message is in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            wp.compile_aot_module(kernel.module, arch=arch, module_dir=folder, use_ptx=False)
        except Exception as error:  # NVRTC's failures come as different types
            raise InputError(f"kernel {kernel.key} does not compile for sm_{arch}: {error}") from error
        binaries = list(Path(folder).glob("*.cubin"))
        if not binaries:
            raise InputError(
                f"kernel {kernel.key} gave no binary for sm_{arch}; see the compiler's output above"
            )
        return [entry for path in binaries for entry in read_cubin(path.read_bytes())]


def read_cubin(binary: bytes) -> list[Resources]:
    """Read the entry points of a CUDA binary, sorted by name.

    Raises:
        InputError: the bytes are no ELF file.
    """
    if binary[:4] != b"\x7fELF":
        raise InputError("not a CUDA binary (no ELF header); compile with use_ptx=False")
    sections = _sections(binary)
    code = {name[len(".text.") :]: size for name, _, size, _ in sections if name.startswith(".text.")}
    registers, stack = dict.fromkeys(code, 0), dict.fromkeys(code, 0)
    symbols = _symbols(binary, sections)
    for name, offset, size, _ in sections:
        if name == ".nv.info":
            for attribute, symbol, value in _attributes(binary[offset : offset + size]):
                table = {_FRAME_SIZE: stack, _REGISTER_COUNT: registers}.get(attribute)
                if table is not None and symbols[symbol] in code:
                    table[symbols[symbol]] = value
    return [Resources(_readable(n), registers[n], stack[n], code[n]) for n in sorted(code)]


def _sections(binary: bytes) -> list[tuple[str, int, int, int]]:
    """(name, offset, size, link) of each section."""
    table = struct.unpack_from("<Q", binary, 0x28)[0]
    count, names = struct.unpack_from("<HH", binary, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", binary, table + 64 * i) for i in range(count)]
    return [(_text(binary, headers[names][4] + h[0]), h[4], h[5], h[6]) for h in headers]


def _symbols(binary: bytes, sections: list[tuple[str, int, int, int]]) -> list[str]:
    _, offset, size, link = next(section for section in sections if section[0] == ".symtab")
    strings = sections[link][1]
    starts = (struct.unpack_from("<I", binary, offset + 24 * i)[0] for i in range(size // 24))
    return [_text(binary, strings + start) for start in starts]


def _attributes(info: bytes) -> list[tuple[int, int, int]]:
    """(attribute, symbol, value) of each entry of .nv.info that has these."""
    found, position = [], 0
    while position < len(info):
        layout, attribute, size = struct.unpack_from("<BBH", info, position)
        position += 4
        if layout == _INFO_WITH_SIZE:
            if size >= 8:
                found.append((attribute, *struct.unpack_from("<II", info, position)))
            position += size
    return found


def _text(binary: bytes, offset: int) -> str:
    return binary[offset : binary.index(b"\0", offset)].decode()


def _readable(symbol: str) -> str:
    """`make__locals___step_1a2b3c4d_cuda_kernel_forward` becomes `_step forward`."""
    name, _, direction = symbol.rpartition("_cuda_kernel_")
    return f"{name.rpartition('__locals__')[2].rpartition('_')[0]} {direction}" if name else symbol
