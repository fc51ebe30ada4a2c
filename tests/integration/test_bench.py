"""`tandem bench` against the real system with a tiny model, and against one that runs already."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.micro.table import read_micro
from tandem.types import Phase
from tests.support.deployment import deployment

SETTINGS = {"memd": {"kv-bytes": 16 << 20, "dtype": "float32"}}
NUM_REQUESTS = 40
RATE_PER_S = 8.0  # 5 seconds


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[[str], Path]) -> str:
    return str(tiny_model_dir("llama"))


@pytest.fixture(scope="module")
def address(model):
    with deployment(model, SETTINGS) as system:
        yield system.gateway


def bench(*arguments: object) -> str:
    """What the command prints; fails when it does."""
    command = [sys.executable, "-m", "tandem.cli.main", "bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def only_run(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text())
    assert result["schema"] == "tandem.bench.run/1"
    (run,) = result["runs"]
    return run


def test_a_run_starts_the_system_and_measures_every_request(model, tmp_path):
    out = tmp_path / "result.json"
    settings = [part for text in ("memd.kv-bytes=16777216", "memd.dtype=float32") for part in ("--set", text)]
    load = ["--workload", "fixed:40,12", "--rate", RATE_PER_S, "--num-requests", NUM_REQUESTS, "--slo", "60000,60000"]
    printed = bench("run", "semi-pd", "--model", model, "--out", out, *load, *settings)
    summary = only_run(out)["summary"]
    assert summary["errors"] == {}
    assert summary["num_requests"] == NUM_REQUESTS
    assert summary["attainment"] == 1.0
    assert summary["ttft_ms"]["count"] == summary["tpot_ms"]["count"] == NUM_REQUESTS
    assert 0 < summary["ttft_ms"]["p50"] <= summary["ttft_ms"]["p99"]
    assert summary["duration_s"] * summary["output_tokens_per_s"] == pytest.approx(12 * NUM_REQUESTS)
    assert "TTFT" in printed
    assert f"0 of {NUM_REQUESTS} failed" in printed


def test_chats_go_on_with_the_answers_that_came(model, address, tmp_path):
    out = tmp_path / "result.json"
    bench(
        "run", f"at:{address}", "--model", model, "--out", out, "--workload", "chat", "--num-requests", 8, "--rate", 20
    )
    run = only_run(out)
    assert run["summary"]["errors"] == {}
    assert run["deployment"] == f"at:{address}"
    assert len(run["latencies"]["e2e_ms"]) == 8


def test_goodput_of_a_running_system_is_found_and_plotted(model, address, tmp_path):
    out = tmp_path / "goodput.json"
    load = ["--workload", "fixed:16,4", "--num-requests", 10, "--rate", 20, "--max-probes", 2, "--seeds", 2]
    bench("goodput", f"at:{address}", "--model", model, "--out", out, *load)
    result = json.loads(out.read_text())
    assert result["slo"]["ttft_ms"] > 0
    (entry,) = result["deployments"]
    assert entry["goodput"]["samples"][0]["rate_per_s"] == 20
    assert [len(sample["by_seed"]) for sample in entry["goodput"]["samples"]] == [2, 2]
    assert len(entry["runs"]) == 4
    bench("plot", out)
    assert (tmp_path / "goodput-attainment.png").read_bytes().startswith(b"\x89PNG")


def test_endurance_watches_every_process_while_requests_are_answered(model, tmp_path):
    out = tmp_path / "endurance.json"
    load = ["--workload", "fixed:16,4", "--rate", 5, "--duration", 4, "--sample-s", 0.25]
    settings = [part for text in ("memd.kv-bytes=16777216", "memd.dtype=float32") for part in ("--set", text)]
    control = ["--against-fresh", 1, "--pair-s", 1]
    command = ["endurance", "semi-pd", "--model", model, "--out", out, *load, *control, *settings]
    done = subprocess.run([sys.executable, "-m", "tandem.cli.main", "bench", *map(str, command)], check=False)
    result = json.loads(out.read_text())
    watched = [each for each in result["judgements"] if each["subject"] != "requests"]
    assert done.returncode == any(each["trend"]["verdict"] == "grew" for each in watched), "one pair judges nothing"
    assert result["errors"] == {}
    (pair,) = result["control"]["pairs"]
    assert [pair[side]["num_requests"] - pair[side]["num_errors"] for side in ("soaked", "fresh")] == [5, 5]
    soaked, fresh = (result["control"][f"{side}_pool"]["num_cached_blocks"] for side in ("soaked", "fresh"))
    assert soaked > fresh == 0
    assert sum(window["num_requests"] for window in result["latencies"]) == 20
    names = {series["name"] for series in result["processes"]}
    assert names >= {"gateway", "prefill", "decode", "memd", "controller", "keeper", "load generator"}
    for series in result["processes"]:
        assert len(series["windows"]) >= 8
        assert all(window["anonymous_bytes"] > 0 and window["num_threads"] > 0 for window in series["windows"])
    bench("plot", out)
    assert (tmp_path / "endurance-endurance.png").read_bytes().startswith(b"\x89PNG")


def test_micro_measures_steps_leases_and_the_gateway(model, tmp_path):
    out = tmp_path / "micro.json"
    grid = ["--threads", 1, "--batches", "1,3", "--contexts", 20, "--chunks", 32, "--rounds", 1]
    bench("micro", "--model", model, "--out", out, *grid, "--set", "memd.dtype=float32")
    result = read_micro(out)
    assert [(step.shape.phase, step.shape.num_sequences) for step in result.steps] == [
        (Phase.DECODE, 1),
        (Phase.DECODE, 3),
        (Phase.PREFILL, 1),
        (Phase.PREFILL, 1),
    ]
    assert all(0 < step.floor_ms < step.median_ms for step in result.steps)
    assert result.model.dtype == "float32"
    assert {cost.queue_depth for cost in result.decisions} == {1, 10, 100, 1_000, 10_000}
    assert {cost.num_blocks for cost in result.leases} == {1, 16, 64}
    assert all(cost.cpu_us_per_token > 0 for cost in result.gateway)
