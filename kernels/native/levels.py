"""Instruction set levels that the library is built for, and what this processor has."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Level:
    """One build of the library."""

    name: str
    compiler_flags: tuple[str, ...]
    cpu_flags: frozenset[str]  # as the kernel names them


AVX512_BF16 = Level(
    "avx512bf16",
    ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16"}),
)


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
