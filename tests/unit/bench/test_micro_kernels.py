"""The comparison of kernel sets: its cases compute what they say, its table shows ratios."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from bench.micro import kernels
from bench.micro.kernels import Contender, Rivals, Subject, Timing, cases, main, table
from kernels.native.levels import AVX2, AVX512_BF16, NativeUnavailableError
from kernels.table import torch_kernels
from tests.support.paged_decoder import one_thread


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_case_runs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    small = replace(kernels.MODEL, num_layers=1, hidden_size=64, intermediate_size=96, vocab_size=128)
    monkeypatch.setattr(kernels, "MODEL", small)
    with one_thread(), torch.inference_mode():
        made = list(cases())
        contender = Contender(torch_kernels(), Subject(dtype))
        for case in made:
            case.run(contender)()
    steps = [case for case in made if case.name.startswith("step")]
    assert len(steps) == len(kernels.DECODE_BATCHES) + 1
    assert all(case.read_bytes > 0 and case.flops > 0 for case in steps)


def test_the_table_shows_ratios() -> None:
    console = Console(width=160, record=True)
    with console.capture() as shown:
        console.print(table([Timing("a", 4.0, 2.0, 2.5, 1.0), Timing("b", 3.0, 6.0, 6.0, 0.0)], "ms"))
    rows = [line.replace("│", " ").split() for line in shown.get().splitlines() if "│" in line]
    assert rows == [["a", "4.00", "2.00", "2.50", "2.00", "1.00", "2.00"], ["b", "3.00", "6.00", "6.00", "0.50"]]


def test_without_native_kernels_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unavailable(rivals: Rivals, *_: int) -> list[Timing]:
        asked.append(rivals)
        raise NativeUnavailableError("not built")

    monkeypatch.setattr(kernels, "measure", unavailable)
    assert main([]) == 1
    assert main(["--level", "avx2", "--torch-dtype", "float32"]) == 1
    assert asked == [Rivals([AVX512_BF16, AVX2], torch.bfloat16), Rivals([AVX2], torch.float32)]
