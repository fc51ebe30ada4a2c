"""What is reused, as the benchmarks see it: every prefix that was computed, and no other token."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.reading import read_result
from bench.reuse.results import HitsResult, ReuseResult, SegmentsResult
from bench.reuse.rounds import Warmth
from bench.reuse.trace import ANY_SIZE

FLOAT32 = ("--set", "memd.dtype=float32")  # bfloat16 would let a chunk's shape turn a near tie
NUM_REQUESTS = 40


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> str:
    return str(tiny_model_dir("llama"))


def bench(*arguments: object) -> None:
    command = [sys.executable, "-m", "tandem.cli.main", "bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_warm_prompts_find_what_they_share_and_are_answered_as_the_cold_ones(model, tmp_path):
    out = tmp_path / "reuse.json"
    bench("reuse", "--model", model, "--out", out, "--lengths", "64,200,4096", "--rounds", 2, *FLOAT32)
    result = read_result(out)
    assert isinstance(result, ReuseResult)
    found = {(each.warmth, each.length): each.num_cached_tokens for each in result.savings.series}
    assert found == {
        (Warmth.LEAST, 1): (0, 0),
        (Warmth.COLD, 64): (0, 0),
        (Warmth.HALF, 64): (32, 32),
        (Warmth.CACHED, 64): (63, 63),
        (Warmth.COLD, 200): (0, 0),
        (Warmth.HALF, 200): (100, 100),
        (Warmth.CACHED, 200): (199, 199),
    }
    assert [(each.num_answers, each.num_other_answers) for each in result.savings.agreements] == [(4, 0), (4, 0)]


def test_documents_are_reused_in_another_order_by_as_much_as_the_ratio_leaves(model, tmp_path):
    out = tmp_path / "segments.json"
    shape = ("--documents", "2", "--document-tokens", "160", "--ratios", "0.05,0.3", "--rounds", "1")
    bench("segments", "semi-pd", "--model", model, "--out", out, *shape, *FLOAT32, "--set", "memd.kv-bytes=16777216")
    result = read_result(out)
    assert isinstance(result, SegmentsResult)
    exact, first, little, more = result.series
    num_prompt_tokens = exact.num_computed[0]
    assert (exact.num_approximate, first.num_approximate, first.num_computed) == ((0,), (0,), (num_prompt_tokens,))
    assert 0 < more.num_approximate[0] < little.num_approximate[0] < 2 * 160
    for series in (little, more):
        parts = (series.num_exact, series.num_approximate, series.num_computed)
        assert sum(count for (count,) in parts) == num_prompt_tokens


def trace(path: Path) -> Path:
    """Conversations that grow, taking turns; the ids name blocks of 512 tokens."""
    rows = []
    for number in range(NUM_REQUESTS):
        user, turn = number % 5, number // 5
        blocks = [0, *(1000 * user + place for place in range(1, turn + 2))]
        length = 512 * len(blocks) - 100
        rows.append({"timestamp": number, "input_length": length, "output_length": 64, "hash_ids": blocks})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_pool_that_holds_a_trace_hits_all_that_is_attainable(model, tmp_path):
    out, data = tmp_path / "hits.json", trace(tmp_path / "trace.jsonl")
    bench("hits", "--model", model, "--out", out, "--data", data, "--num-requests", NUM_REQUESTS, *FLOAT32)
    result = read_result(out)
    assert isinstance(result, HitsResult)
    (attainable,) = [each for each in result.replays if each.name == ANY_SIZE]
    assert result.num_cached_tokens == attainable.num_cached_tokens
    assert sum(result.num_cached_tokens) > 0.6 * sum(result.num_prompt_tokens)
