"""`tandem bench accuracy`: its numbers by hand, its equivalent weights, its command."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.accuracy.divergence import score_window, summarise
from bench.accuracy.model import TextModel, load_weights
from bench.accuracy.off_grid import OffGridSource
from bench.accuracy.windows import cut, write
from kernels.table import torch_kernels
from tandem.cli.main import main
from tandem.errors import ConfigError
from tandem.model.source import ModelSource, open_model
from tests.support.paged_decoder import one_thread


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def folder(tiny_model_dir) -> Path:
    return tiny_model_dir("llama")


def text_model(source: ModelSource) -> TextModel:
    weights = load_weights(source, "float32", "none")
    return TextModel(source.config, weights, torch_kernels(), dtype=torch.float32, num_sequences=2, max_tokens=24)


def test_divergence_by_hand():
    reference = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]).log()
    other = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]]).log()
    seen = summarise([score_window(reference, other, [0, 1, 0])])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert seen.kl_mean == pytest.approx(first / 2)
    assert seen.kl_max == pytest.approx(first)
    assert seen.perplexity == pytest.approx(math.exp(-(math.log(0.75) + math.log(0.9)) / 2))
    assert seen.top1_agreement == 0.5


def test_a_model_agrees_with_itself():
    logits = torch.randn(6, 50)
    seen = summarise([score_window(logits, logits, range(6))] * 2)
    assert (seen.kl_max, seen.top1_agreement) == (0.0, 1.0)


def test_windows_are_cut_one_after_another():
    assert cut(range(10), 5, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut(range(10), 2, 3) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ConfigError, match="10 tokens; a window has 11"):
        cut(range(10), 1, 11)


def test_what_the_model_writes_is_the_same_each_time(folder):
    source = open_model(str(folder), folder)
    steps = []
    first, second = (write(text_model(source), 3, 2, 20, lambda: steps.append(1)) for _ in range(2))
    assert first == second
    assert [len(window) for window in first] == [20, 20]
    assert first[0] != first[1]
    assert {window[0] for window in first} == {3}
    assert len(steps) == 2 * 19


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_off_grid_weights_compute_the_same(family, tiny_model_dir):
    folder = tiny_model_dir(family)
    source = open_model(str(folder), folder)
    off_grid = OffGridSource(source)
    name = "model.layers.0.mlp.down_proj.weight"
    assert (off_grid.tensor(name) - source.tensor(name)).abs().max() > 0.01
    ids = [list(range(1, 21))]
    theirs = text_model(source).logits(ids, 0)
    torch.testing.assert_close(text_model(off_grid).logits(ids, 0), theirs, rtol=1e-3, atol=1e-3)


def test_the_command_measures_every_quantization(folder, tmp_path):
    out = tmp_path / "accuracy.json"
    arguments = ["--model", str(folder), "--windows", "2", "--window-tokens", "16", "--out", str(out)]
    result = CliRunner().invoke(main, ["bench", "accuracy", *arguments])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert written["schema"] == "tandem.bench.accuracy/1"
    by_dtype = {variant["dtype"]: variant for variant in written["variants"]}
    assert set(by_dtype) == {"float32", "bfloat16", "bfloat16+int8", "bfloat16+int4"}
    means = [by_dtype[dtype]["divergence"]["kl_mean"] for dtype in by_dtype]
    assert means[0] == 0.0
    assert 0 < means[2] < means[3]
    sizes = [by_dtype[dtype]["weight_bytes"] for dtype in by_dtype]
    assert sizes == sorted(sizes, reverse=True)


def test_a_text_that_cannot_be_read_is_named(folder, tmp_path):
    result = CliRunner().invoke(
        main, ["bench", "accuracy", "--model", str(folder), "--text", str(tmp_path / "none.txt")]
    )
    assert result.exit_code == 1
    assert "none.txt" in result.output
