"""The GPU benchmark's arithmetic, findings and search, without a GPU."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.deployment.hf_export import check_equal
from bench.deployment.open import Target
from bench.experiment import Experiment
from bench.gpu import extract_trace
from bench.gpu.bench import Bench, SkippedError
from bench.gpu.display import result_lines, summary_lines, text_of
from bench.gpu.floors import Rates, attention_bytes, decode_bytes, decode_floor_ms, prefill_flop
from bench.gpu.load import DECODE_PERCENTS, SMALLEST_PERCENT, split_of
from bench.gpu.model_files import forget_pages, written_model
from bench.gpu.parts import deployment, device, goodput
from bench.gpu.record import LEFT_OUT, NO_TIME, Report, SectionResult, SectionStatus
from bench.gpu.subject import MODELS, SMALLEST
from bench.gpu.surroundings import NOWHERE
from bench.load.endpoint import EndpointSpec, Protocols
from bench.workloads.traces import read_azure
from tandem.clock import Clock, ManualClock
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY
from tandem.device.cuda.sm_split import SmGroups, plan_share, shares_of
from tandem.model.hf_folder import WEIGHTS
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family
from tandem.model.source import open_model
from tandem.types import Phase
from tests.support.fake_cuda.host import fake_driver

# --- floors


def test_a_decode_step_of_llama_3_8b_reads_what_is_known_of_it() -> None:
    config = MODELS["llama-3-8b"]
    embedding = 128256 * 4096
    parameters = 8_030_261_248  # of the published model
    assert decode_bytes(config, 1, 0) == 2 * (parameters - embedding + 4096)
    assert decode_bytes(config, 2, 100) - decode_bytes(config, 2, 0) == 2 * 100 * 128 * 1024  # 128 KiB a token
    assert decode_floor_ms(config, 1, 0, Rates(4000.0, 1.0)) == pytest.approx(3.752, abs=0.002)


def test_qwen_s_biases_and_head_are_counted() -> None:
    config = MODELS["qwen2.5-7b"]
    assert decode_bytes(config, 0, 0) == 2 * (7_615_616_512 - 152064 * 3584)
    tied = replace(config, tie_word_embeddings=True)
    assert decode_bytes(tied, 0, 0) == decode_bytes(config, 0, 0)


def test_prefill_is_two_flop_a_weight_and_token_and_attention_s() -> None:
    config = MODELS["llama-3-8b"]
    layers = 8_030_261_248 - 2 * 128256 * 4096 - (2 * 32 + 1) * 4096
    head = 128256 * 4096
    pairs = 2 * (3 * 4 // 2)
    assert prefill_flop(config, [3, 3]) == 2 * layers * 6 + 2 * head * 2 + 4 * 32 * 32 * 128 * pairs
    assert attention_bytes(config, 64, 1024) == 64 * 1024 * 4096


# --- shares


def test_each_percentage_is_another_share_of_16_groups() -> None:
    device = SmGroups(132, 8, 16)
    for phase in Phase:
        had = {
            plan_share(phase, split_of(percent), device) for percent in DECODE_PERCENTS if percent != SMALLEST_PERCENT
        }
        assert len(had) == len(DECODE_PERCENTS) - 1 == len(shares_of(phase, device))


# --- a section's own surroundings


def a_bench(folder: Path, *, clock: Clock | None = None, is_dry: bool = True) -> Bench:
    return Bench(folder / "v.json", clock or ManualClock(), 100.0, folder / "pack", is_dry=is_dry)


def test_what_was_expected_and_is_not_there_was_left_out(tmp_path: Path) -> None:
    clock = ManualClock()
    bench = a_bench(tmp_path, clock=clock)
    bench.expect(["one", "two", "three"])
    bench.record("two", 2)
    bench.leave_out("three", "no MPS")
    assert json.loads((tmp_path / "v.json").read_text()) == {
        "two": 2, LEFT_OUT: {"one": NO_TIME, "three": "no MPS"},
    }  # fmt: skip
    clock.advance(95.0)
    assert (bench.has_time(5.0), bench.has_time(5.1)) == (True, False)


def test_findings_are_there_at_once_and_rounded(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    bench.record("a", {"ms": 1.234567, "list": [0.000123456, 3]})
    assert json.loads((tmp_path / "v.json").read_text()) == {"a": {"ms": 1.235, "list": [0.0001235, 3]}}
    assert bench.device == torch.device("cpu")
    with pytest.raises(SkippedError, match="needs a GPU: the driver"):
        bench.needs_gpu("the driver")


def test_what_the_driver_is_asked_over_a_fake_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_driver", fake_driver)
    device.driver_facts(a_bench(tmp_path, is_dry=False))
    found = json.loads((tmp_path / "v.json").read_text())
    assert (found["num_sms"], found["cuda"], found["why_no_vmm"]) == (132, [13, 0], "")
    assert found["groups_of_at_least_8_sms"] == [16, [8], 4]  # as many, of this size, and SMs in none


def test_results_for_people() -> None:
    result = SectionResult(
        "llama", "fast?", SectionStatus.PASSED, 12.0, 20.0, values={"decode": {"ms": 1.23456, "n": 3}}
    )
    lines = list(result_lines(result))
    assert "passed" in lines[0]
    assert lines[1].strip() == "decode: ms 1.235  n 3"
    assert text_of([1.0, "x"]) == "[1, x]"
    report = Report(0.0, True, (result, replace(result, status=SectionStatus.FAILED), result))
    assert list(summary_lines(report))[-1] == "2 passed, 1 failed"


# --- what is brought along, and models in files


def trace_of(count: int) -> list[str]:
    rows = [f"2023-11-16 18:{at // 60:02}:{at % 60:02}.0000000,{100 + at},{10 + at}\n" for at in range(count)]
    return [f"{extract_trace.COLUMNS}\n", *rows]


def test_an_extract_is_the_trace_s_first_requests(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / extract_trace.EXTRACT
    whole.write_text("".join(trace_of(extract_trace.NUM_REQUESTS + 5)))
    assert extract_trace.main([str(whole), str(out)]) == 0
    count = extract_trace.count_requests(out)
    assert count == extract_trace.NUM_REQUESTS
    assert read_azure(out, 0, count) == read_azure(whole, 0, count)


@pytest.mark.parametrize("lines", [[], ["a,b\n", "1,2\n"], trace_of(0)])
def test_what_is_no_trace_is_not_packed(lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "whole.csv").write_text("".join(lines))
    assert extract_trace.main([str(tmp_path / "whole.csv"), str(tmp_path / "out")]) == 1
    assert "whole.csv: its first line" in (said := capsys.readouterr().err) or "no requests" in said
    assert not (tmp_path / "out").exists()


def test_goodput_is_of_the_trace_where_it_was_brought_along(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    assert goodput.workload_for(bench, SMALLEST).name == "sharegpt"
    bench.pack.mkdir()
    (bench.pack / extract_trace.EXTRACT).write_text("".join(trace_of(30)))
    spec = goodput.workload_for(bench, SMALLEST)
    assert (spec.name, spec.arrival.text, spec.num_requests) == ("azure", "trace", 30)


def test_both_modes_are_looked_at_alike_until_the_time_is_over(tmp_path: Path) -> None:
    """Colocated sustains 10 requests a second, semi-pd 16; a probe takes 9 s of 100."""
    clock = ManualClock()
    bench = a_bench(tmp_path, clock=clock)
    asked: list[int] = []

    def run(experiment: Experiment, target: Target, salt: str, on_progress: object) -> Any:
        clock.advance(9.0)
        asked.append(experiment.spec.num_requests)
        sustained = {"colocated": 10.0, "semi-pd": 16.0}[target.name]
        return SimpleNamespace(summary=SimpleNamespace(attainment=float(experiment.spec.rate_per_s <= sustained)))

    spec = replace(goodput.workload_for(bench, SMALLEST), num_requests=60)
    targets = [Target(name, EndpointSpec(Protocols.TANDEM, "")) for name in goodput.NAMES]
    goodput.Probes(bench, Experiment(spec, 0, 1.0), targets, run).search(8.0, max_rates=20)
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["rates_and_attainments"] == {
        "colocated": [[8, 1], [16, 0], [12, 0], [10, 1]],
        "semi-pd": [[8, 1], [16, 1], [32, 0], [24, 0], [20, 0], [18, 0]],
    }
    assert found["semi_pd_over_colocated"] == 1.6
    assert asked[:4] == [40, 40, 60, 60]  # what the trace has at most
    assert goodput.BISECTED not in found
    assert 80 < clock.now() <= 100


def test_a_written_model_is_the_drawn_one(tmp_path: Path) -> None:
    folder = written_model(tmp_path / "model", SMALLEST)
    forget_pages(folder / WEIGHTS)
    written, drawn = (open_model(name, tmp_path) for name in (str(folder), f"random:{folder / 'config.json'}"))
    assert written.config == drawn.config
    check_equal(drawn, written)


def test_the_model_in_files_is_bounded() -> None:
    parameters = get_family("llama").parameters(deployment.SHAPE)
    assert 1 << 30 < build_manifest(parameters, "bfloat16").total_bytes < 2 << 30


def test_the_section_that_kills_a_client_of_mps_is_none_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def free_bytes(environ: Mapping[str, str]) -> int:
        asked.append(environ[ENV_PIPE_DIRECTORY])
        return 7

    monkeypatch.setenv(ENV_PIPE_DIRECTORY, "/a/daemon's")
    monkeypatch.setattr(deployment, "free_bytes_from_child", free_bytes)
    assert deployment._free_bytes(a_bench(tmp_path, is_dry=False)) == 7
    assert asked == [NOWHERE]


def test_the_longest_wait_from_a_moment_on() -> None:
    heard = deployment.Heard(at_s=[1.0, 5.0, 5.1, 8.0, 8.5])
    assert heard.longest_wait_s(4.9) == pytest.approx(2.9)
