"""The comparison of quantizations: its cases compute what they say, its table shows ratios."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from bench.micro import quantised
from bench.micro.quantised import Timing, cases, contenders, main, table
from kernels.native.levels import NativeUnavailableError
from kernels.table import torch_kernels
from tests.support.paged_decoder import one_thread


def test_every_case_runs_and_fewer_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(quantised.MODEL, num_layers=1, hidden_size=64, intermediate_size=96, vocab_size=128)
    monkeypatch.setattr(quantised, "MODEL", small)
    with one_thread(), torch.inference_mode():
        subjects, made = contenders(torch_kernels()), list(cases())
        for case in made:
            for subject in subjects:
                case.run(subject)()
    assert [subject.quantization for subject in subjects] == ["none", "int8", "int4"]
    assert len(made) == len(quantised.LINEAR_ROWS) + len(quantised.DECODE_BATCHES) + 1
    none, int8, int4 = (made[0].read_bytes(subject) for subject in subjects)
    assert (int8 / none, int4 / none) == (pytest.approx(8.5 / 16), pytest.approx(5 / 16))


def test_the_table_shows_ratios() -> None:
    console = Console(width=160)
    timing = Timing("a", {"none": 4.0, "int8": 2.0, "int4": 1.0}, {"none": 2.0, "int8": 1.0, "int4": 0.25})
    with console.capture() as shown:
        console.print(table([timing], 2))
    (row,) = (line.replace("│", " ").split() for line in shown.get().splitlines() if "│" in line)
    assert row == ["a", "4.00", "2.00", "1.00", "2.00", "4.00", "2.00", "/", "2.00", "/", "4.00"]


def test_without_native_kernels_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: int) -> list[Timing]:
        raise NativeUnavailableError("not built")

    monkeypatch.setattr(quantised, "measure", unavailable)
    assert main([]) == 1
