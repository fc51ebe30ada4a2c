"""Building and loading: what happens with a compiler, without one, with stale sources, on another processor."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kernels.choice import choose_kernels
from kernels.native import build as build_module
from kernels.native import levels
from kernels.native.build import BuildError, build, find_compiler, find_openmp
from kernels.native.levels import (
    AVX2,
    AVX512_BF16,
    LEVELS,
    Level,
    NativeUnavailableError,
    choose_level,
    library_path,
    runs_here,
)
from tests.support.kernel_sets import kernel_set


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, small enough to compile in a moment."""
    (tmp_path / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    for module in (levels, build_module):
        monkeypatch.setattr(module, "SOURCES", tmp_path)
    return tmp_path


def test_the_name_changes_with_the_sources(sources: Path) -> None:
    before = library_path(AVX512_BF16)
    (sources / "one.cpp").write_text("// changed\n")
    assert library_path(AVX512_BF16) != before


def compiler() -> list[str]:
    try:
        return find_compiler({"PATH": "/usr/bin:/usr/local/bin"})
    except BuildError as error:
        pytest.skip(str(error))


def test_a_new_build_replaces_the_stale_one(sources: Path) -> None:
    stale = build(AVX512_BF16, compiler(), find_openmp())
    (sources / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    fresh = build(AVX512_BF16, compiler(), find_openmp())
    assert list((sources / "lib").iterdir()) == [fresh]
    assert fresh != stale


def test_an_error_of_the_compiler_is_told_in_one_line(sources: Path) -> None:
    (sources / "one.cpp").write_text("int broken( {\n")
    with pytest.raises(BuildError, match=r"error") as failure:
        build(AVX512_BF16, compiler(), find_openmp())
    assert "\n" not in str(failure.value)
    assert list((sources / "lib").iterdir()) == []


def test_no_compiler_is_no_failure(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(sources))
    monkeypatch.delenv("CXX", raising=False)
    assert build_module.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(LEVELS)
    for line, level in zip(lines, LEVELS, strict=True):
        assert line.startswith(f"native kernels, {level.name}: not built (no C++ compiler, ")
        assert "python -m kernels.native.build" in line, "what to do when there is one"


def test_cxx_is_asked_first() -> None:
    assert find_compiler({"CXX": "clang++ -v", "PATH": "/usr/bin"}) == ["clang++", "-v"]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_processor_without_the_instructions_is_recognised(tmp_path: Path, level: Level) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    assert not runs_here(level, cpu_info)
    cpu_info.write_text(f"processor : 0\nflags\t: fpu {' '.join(level.cpu_flags)}\n")
    assert runs_here(level, cpu_info)
    assert not runs_here(level, tmp_path / "none")


def test_float32_is_computed_by_torch() -> None:
    choice = choose_kernels(torch.float32)
    assert choice.kernels.name == "torch"
    assert "float32" in choice.reason


def test_bfloat16_is_computed_natively_where_it_can_be() -> None:
    try:
        level = choose_level()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    choice = choose_kernels(torch.bfloat16)
    assert (choice.kernels.name, choice.reason) == (f"native-{level.name}", "")


@pytest.mark.parametrize(
    ("runnable", "built", "chosen"),
    [
        (LEVELS, LEVELS, AVX512_BF16),
        ((AVX2,), LEVELS, AVX2),
        (LEVELS, (AVX2,), AVX2),
        ((AVX2,), (AVX512_BF16,), "not built"),
        (LEVELS, (), "not built"),
        ((), LEVELS, "processor has no avx512bf16 or avx2"),
    ],
)
def test_the_fastest_level_that_runs_and_is_built_is_chosen(
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
    runnable: Sequence[Level],
    built: Sequence[Level],
    chosen: Level | str,
) -> None:
    monkeypatch.setattr(levels, "runs_here", lambda level: level in runnable)
    (sources / "lib").mkdir()
    for level in built:
        library_path(level).touch()
    if isinstance(chosen, Level):
        assert choose_level() == chosen
    else:
        with pytest.raises(NativeUnavailableError, match=chosen):
            choose_level()


def test_without_a_build_the_reason_is_given(sources: Path) -> None:
    choice = choose_kernels(torch.bfloat16)
    assert choice.kernels.name == "torch"
    assert choice.reason.startswith(
        ("native kernels: not built: ", "native kernels: processor has no avx512bf16 or avx2")
    )


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_one_openmp_runtime_is_in_the_process(level: Level) -> None:
    kernel_set(f"native-{level.name}")
    program = (
        "from kernels.native import kernels, levels; import torch;"
        f"kernels.native_kernels([level for level in levels.LEVELS if level.name == '{level.name}']);"
        "maps = open('/proc/self/maps').read().splitlines();"
        "print({line[line.index('/') :] for line in maps if 'omp' in line.rpartition('/')[2]})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("omp") == 1
    assert str(find_openmp()) in done.stdout
