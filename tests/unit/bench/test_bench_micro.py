"""Micro measurements: which steps, what their floors are, and the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.commands.micro import default_threads, numbers
from bench.micro.decisions import DECISIONS
from bench.micro.shapes import Grid, floor_ms, kv_bytes_needed, model_facts, num_blocks_needed, step_shapes
from bench.micro.steps import step_parts
from bench.micro.table import (
    DecisionCost,
    Floor,
    GatewayCost,
    LeaseCost,
    MicroResult,
    ModelFacts,
    StepShape,
    StepTime,
    read_micro,
)
from bench.results import provenance, write_result
from tandem.errors import ConfigError
from tandem.kv.layout import KvLayout
from tandem.model.config import ModelConfig
from tandem.types import Phase
from tests.support.tiny_models import tiny_model

GRID = Grid(threads=(1, 2), batches=(1, 8), contexts=(16, 200), chunks=(100,))
FACTS = ModelFacts(
    "m", "bfloat16", weight_bytes=2_000_000, kv_token_bytes=1_000, flops_per_token=2_000_000, block_size=16
)
FLOOR = Floor(num_threads=1, read_gb_per_s=10.0, gemm_gflop_per_s=100.0)
STEP = StepShape(Phase.DECODE, 1, 8, 1, 128)
CONFIG = ModelConfig(
    family="llama",
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=384,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
)
LAYOUT = KvLayout(2, 64, 16, 2, 16, "float32")
RESULT = MicroResult(
    provenance=provenance(),
    model=FACTS,
    floors=(FLOOR,),
    steps=(StepTime(STEP, 2.0, 1.5, 3.0, 0.3),),
    decisions=(DecisionCost("decode.step", 10, 3.5),),
    leases=(LeaseCost("lease_blocks", 16, 0.5, 1.0),),
    gateway=(GatewayCost(16, 4096, 80.0),),
)


def test_the_grid_is_every_combination_that_the_context_allows():
    shapes = step_shapes(GRID, 256)
    decode = {(s.num_threads, s.num_sequences, s.num_context_tokens) for s in shapes if s.phase is Phase.DECODE}
    prefill = {(s.num_threads, s.num_new_tokens, s.num_context_tokens) for s in shapes if s.phase is Phase.PREFILL}
    assert decode == {(t, b, c) for t in (1, 2) for b in (1, 8) for c in (16, 200)}
    assert prefill == {(t, 100, c) for t in (1, 2) for c in (100, 116)}  # 300 tokens are beyond the context
    assert len(shapes) == len(set(shapes)) == 12


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]))
def test_each_sequence_of_a_step_has_blocks_of_its_own(num_sequences, num_context_tokens, block_size):
    shape = StepShape(Phase.DECODE, 1, num_sequences, 1, num_context_tokens)
    blocks = [block for part in step_parts(shape, block_size) for block in part.rows.block_ids]
    assert len(blocks) == len(set(blocks)) == num_blocks_needed([shape], block_size)
    assert max(blocks) < num_blocks_needed([shape], block_size)
    assert all(len(part.rows.block_ids) * block_size >= num_context_tokens for part in step_parts(shape, block_size))


def test_a_prefill_step_ends_at_its_context():
    (part,) = step_parts(StepShape(Phase.PREFILL, 1, 1, 100, 116), 16)
    assert part.rows.start == 16
    assert len(part.rows.token_ids) == 100


def test_the_pool_holds_the_largest_step_in_any_dtype():
    shapes = step_shapes(GRID, 256)
    assert kv_bytes_needed(shapes, CONFIG, 16) >= num_blocks_needed(shapes, 16) * LAYOUT.block_bytes


def test_weights_are_the_matrices_that_transformers_has():
    matrices = {name: p.numel() for name, p in tiny_model("llama").named_parameters() if p.dim() == 2}
    embedding = matrices.pop("model.embed_tokens.weight")
    facts = model_facts("tiny", CONFIG, LAYOUT)
    assert facts.weight_bytes == 4 * sum(matrices.values())
    assert facts.flops_per_token == 2 * (sum(matrices.values()) - embedding)  # the head is as large
    assert facts.kv_token_bytes == 2 * 2 * 2 * 16 * 4


def test_decode_is_bound_by_reading_and_long_prefill_by_arithmetic():
    read_ms = (2_000_000 + 8 * 128 * 1_000) / 10e9 * 1e3
    assert floor_ms(STEP, FACTS, FLOOR) == pytest.approx(read_ms)
    prefill = StepShape(Phase.PREFILL, 1, 1, 512, 512)
    assert floor_ms(prefill, FACTS, FLOOR) == pytest.approx(512 * 2_000_000 / 100e9 * 1e3)


@pytest.mark.parametrize("name", DECISIONS)
@pytest.mark.parametrize("depth", [1, 50])
async def test_a_decision_is_taken_as_often_as_asked(name, depth):
    times_us = await DECISIONS[name](depth, 3)
    assert len(times_us) == 3
    assert min(times_us) > 0


def test_the_file_is_read_as_it_was_written(tmp_path):
    write_result(tmp_path / "m.json", RESULT, MicroResult)
    assert read_micro(tmp_path / "m.json") == RESULT


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_another_file_is_refused(text, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ConfigError, match="no result of micro"):
        read_micro(tmp_path / "m.json")


def test_another_version_is_refused(tmp_path):
    write_result(tmp_path / "m.json", RESULT, MicroResult)
    text = (tmp_path / "m.json").read_text()
    (tmp_path / "m.json").write_text(text.replace("tandem.bench.micro/1", "tandem.bench.micro/2"))
    with pytest.raises(ConfigError, match="no result of micro"):
        read_micro(tmp_path / "m.json")


def test_lists_of_numbers():
    assert numbers("batches", "1,8, 16") == (1, 8, 16)
    assert (default_threads(1), default_threads(4)) == ("1", "1,4")


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "4,-1"])
def test_lists_that_are_none_are_refused_by_name(text):
    with pytest.raises(ConfigError, match="batches"):
        numbers("batches", text)
