"""Step times of splits: the numbers, and the table."""

import pytest

from bench.micro.split_worker import SHAPES
from bench.micro.splits import SplitsResult, SplitTimes, splits_table, step_times
from bench.results import provenance
from tandem.types import Phase


def test_numbers_of_a_hundred_steps():
    times = step_times(Phase.DECODE, [float(ms) for ms in range(100, 0, -1)])
    assert (times.mean_ms, times.median_ms, times.p99_ms) == (50.5, 50.5, 99.0)
    assert times.tokens_per_s == pytest.approx(SHAPES[Phase.DECODE].num_sequences / 0.0505)


def test_a_row_a_split():
    alone = {Phase.PREFILL: step_times(Phase.PREFILL, [256.0]), Phase.DECODE: step_times(Phase.DECODE, [20.0])}
    table = splits_table(
        SplitsResult(provenance(), (SplitTimes(20, 80, alone, alone), SplitTimes(50, 50, alone, alone)))
    )
    assert list(table.columns[0].cells) == ["20, 80", "50, 50"]
    assert list(table.columns[1].cells) == ["20.0", "20.0"]
    assert list(table.columns[5].cells) == ["2000", "2000"]
