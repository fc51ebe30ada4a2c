"""Instruction set levels that the library is built for, and which of them can be had here. Imports no torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
CPU_INFO = Path("/proc/cpuinfo")


class NativeUnavailableError(Exception):
    """Why there is no library to use; `str()` is the reason in a few words."""


@dataclass(frozen=True, slots=True)
class Level:
    """One build of the library."""

    name: str
    compiler_flags: tuple[str, ...]
    cpu_flags: frozenset[str]  # as the kernel names them


AVX512_BF16 = Level(
    "avx512bf16",
    ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"),
    frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"}),
)
AVX2 = Level("avx2", ("-march=x86-64-v3",), frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"}))
LEVELS = (AVX512_BF16, AVX2)  # the fastest first


def library_path(level: Level) -> Path:
    """Where the build of the sources as they are now lies; older ones have other names."""
    digest = hashlib.sha256(repr(level.compiler_flags).encode())
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return SOURCES / "lib" / f"tandem-{level.name}-{digest.hexdigest()[:16]}.so"


def runs_here(level: Level, cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor has what the level needs."""
    if not cpu_info.exists():
        return False
    for line in cpu_info.read_text().splitlines():
        if line.startswith("flags"):
            return level.cpu_flags <= set(line.partition(":")[2].split())
    return False


def choose_level(levels: Sequence[Level] = LEVELS) -> Level:
    """The first that this processor runs and that is built. NativeUnavailableError."""
    runnable = [level for level in levels if runs_here(level)]
    if not runnable:
        raise NativeUnavailableError(f"processor has no {' or '.join(level.name for level in levels)}")
    for level in runnable:
        if library_path(level).exists():
            return level
    raise NativeUnavailableError("not built: python -m kernels.native.build")
