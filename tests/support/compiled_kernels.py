"""Compiles Triton kernels for a Hopper GPU on a machine without one, as the host code would launch them.

The host code runs with tensors of the real shapes on torch's `meta` device; its launches are recorded instead of made.
"""

import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 << 10  # that a program can have on it
SHARED_ON_SM_BYTES = 228 << 10
SHARED_KEPT_BYTES = 1 << 10  # by the driver, of each program
REGISTERS_ON_SM, WARPS_ON_SM, PROGRAMS_ON_SM, THREADS_OF_WARP = 65_536, 64, 32, 32
_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """One launch, as the host code asked for it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a kernel."""

    ptx: str
    shared_bytes: int
    registers: int  # of a thread
    num_warps: int  # of a program
    stack_bytes: int  # of a thread: registers that were spilled, and arrays indexed at run time

    @property
    def programs_on_sm(self) -> int:
        """That fit on one at once, by warps, registers and shared memory; source: CUDA's table for 9.0."""
        by_registers = REGISTERS_ON_SM // (-(-self.registers // 8) * 8 * THREADS_OF_WARP * self.num_warps)
        by_shared = SHARED_ON_SM_BYTES // (self.shared_bytes + SHARED_KEPT_BYTES)
        return min(WARPS_ON_SM // self.num_warps, PROGRAMS_ON_SM, by_registers, by_shared)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """The launches of the block, none of which is made."""
    launches: list[Launch] = []
    original = JITFunction.run

    def record(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        launches.append(Launch(self, grid, dict(bound.arguments), options))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = original


def compile_launch(launch: Launch) -> Compiled:
    """For sm_90a, in this process."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        signature[parameter.name] = "constexpr" if parameter.is_constexpr else _type_of(value)
        if parameter.is_constexpr:
            constants[(index,)] = value
        elif type(value) is int and value == 1 and not parameter.do_not_specialize:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif _is_specialised(parameter, value):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=HOPPER, options=launch.options)
    usage = _resource_usage(kernel.asm["cubin"])
    return Compiled(
        ptx=kernel.asm["ptx"],
        shared_bytes=kernel.metadata.shared,
        registers=usage["REG"],
        num_warps=kernel.metadata.num_warps,
        stack_bytes=usage["STACK"] + usage["LOCAL"],
    )


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int)
    return "i32" if abs(value) < 2**31 else "i64"


def _is_specialised(parameter: Any, value: object) -> bool:
    """To what 16 divides: an integer, or a tensor's address, as allocators give it."""
    if isinstance(value, torch.Tensor):
        return not parameter.do_not_specialize_on_alignment
    return isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize


def _resource_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([_TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout)}
