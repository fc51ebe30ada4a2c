"""Engines alone: their turns, their speeds, and how each one is spoken to."""

import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from rich.console import Console

from bench.engines.cases import Case, cases, default_cases
from bench.engines.display import ratio_table, speed_table
from bench.engines.engine import parse_engine
from bench.engines.llama_cpp import LlamaBatchedBench, seconds_of
from bench.engines.open import EngineOptions, open_engine
from bench.engines.results import EnginesResult
from bench.engines.rounds import Speed, measure, ratios
from bench.engines.vllm_worker import seconds as vllm_seconds
from bench.engines.worker import MARK, running_worker
from bench.plots import plot
from bench.reading import read_result
from bench.results import provenance, write_result
from tandem.errors import NotReadyError
from tandem.types import Phase

PREFILL, DECODE = Case(Phase.PREFILL, 1, 512, 1), Case(Phase.DECODE, 8, 240, 32)
LLAMA_LINES = """
warming up
{"pp": 512, "tg": 1, "pl": 1, "t_pp": 0.25, "speed_pp": 2048.0, "t_tg": 0.5}
"""
WORKER = """
import json, sys
print("a library says hello")
print("@ready", flush=True)
for line in sys.stdin:
    case = json.loads(line)
    if case["num_sequences"] > 99:
        sys.exit("too many")
    print("progress...")
    print("@" + str(case["num_new_tokens"] / 4), flush=True)
"""


def test_decode_contexts_lie_around_the_one_named():
    for case in default_cases():
        if case.phase is Phase.DECODE:
            keys = [case.num_prompt_tokens + step + 1 for step in range(case.num_new_tokens)]
            assert sum(keys) / len(keys) == pytest.approx(256, abs=1)
    assert [case.num_sequences for case in default_cases()] == [1, 1, 8, 16]


def test_tokens_are_those_of_the_time_that_counts():
    assert (PREFILL.num_tokens, DECODE.num_tokens) == (512, 256)
    assert (PREFILL.title, DECODE.title) == ("prefill of 512", "decode, batch 8, context 256")


class Steady:
    """Takes always the same."""

    def __init__(self, name: str, seconds: float, calls: list[tuple[str, Case]]) -> None:
        self._name, self._seconds, self._calls = name, seconds, calls

    def seconds(self, case: Case) -> float:
        self._calls.append((self._name, case))
        return self._seconds


def test_engines_take_turns_case_by_case_and_the_first_round_does_not_count():
    calls: list[tuple[str, Case]] = []
    engines = {name: Steady(name, seconds, calls) for name, seconds in (("a", 0.5), ("b", 2.0))}
    advanced = count()
    speeds = measure(engines, [PREFILL, DECODE], 2, lambda: next(advanced) and None)
    assert [name for name, _ in calls] == ["a", "b", "a", "b", "b", "a", "b", "a", "a", "b", "a", "b"]
    assert next(advanced) == len(calls)
    assert speeds[0] == Speed("a", PREFILL, (1024.0, 1024.0))
    assert {(ratio.engine, ratio.case, ratio.median) for ratio in ratios(speeds)} == {
        ("b", PREFILL, 4),
        ("b", DECODE, 4),
    }


def test_ratios_are_those_of_the_rounds():
    (ratio,) = ratios([Speed("a", DECODE, (2, 8, 9)), Speed("b", DECODE, (1, 2, 9))])
    assert (ratio.median, ratio.lowest, ratio.highest) == (2, 1, 4)


def test_the_file_is_read_and_drawn(tmp_path):
    speeds = (Speed("tandem", DECODE, (2.0, 4.0)), Speed("vllm:hf", DECODE, (1.0, 1.0)))
    result = EnginesResult(provenance(), 2, speeds, ratios(speeds))
    write_result(tmp_path / "e.json", result, EnginesResult)
    assert read_result(tmp_path / "e.json") == result
    (path,) = plot(result, tmp_path, "e")
    assert path.read_bytes().startswith(b"\x89PNG")
    console = Console(width=200, record=True, quiet=False)
    console.print(speed_table(result), ratio_table(result))
    text = console.export_text()
    assert "3 (2 to 4)" in text
    assert "3.00 (2.00 to 4.00)" in text


def test_an_engine_is_named_by_its_files_last_part(tmp_path):
    (tmp_path / "q8_0.gguf").touch()
    assert parse_engine(f"llama.cpp:{tmp_path / 'q8_0.gguf'}").name == "llama.cpp:q8_0.gguf"
    assert parse_engine("tandem:dtype=float32").parameter == "dtype=float32"


def test_llama_is_told_what_the_case_is():
    command = LlamaBatchedBench("llama-batched-bench", "m.gguf", 2).command(DECODE)
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    assert (flags["-npp"], flags["-ntg"], flags["-npl"]) == ("240", "32", "8")
    assert (flags["--threads"], flags["--threads-batch"]) == ("2", "2")
    assert int(flags["--ctx-size"]) >= 8 * 272
    assert int(flags["--ctx-size"]) % (8 * 256) == 0  # whole for every sequence


def test_llamas_line_of_the_case_is_taken():
    assert seconds_of(PREFILL, LLAMA_LINES) == 0.25
    assert seconds_of(Case(Phase.DECODE, 1, 512, 1), LLAMA_LINES) == 0.5
    with pytest.raises(ValueError, match="not enough values"):
        seconds_of(DECODE, LLAMA_LINES)


def test_llama_that_fails_is_said_with_its_words(tmp_path):
    program = tmp_path / "llama-batched-bench"
    program.write_text("#!/bin/sh\necho no such model >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(NotReadyError, match=r"status 3.*no such model"):
        LlamaBatchedBench(str(program), "m.gguf", 2).seconds(DECODE)


def test_a_worker_answers_case_by_case_whatever_else_it_prints(tmp_path):
    with running_worker("w", [sys.executable, "-c", WORKER], {}, tmp_path / "log") as worker:
        assert worker.seconds(DECODE) == 8.0
        assert worker.seconds(PREFILL) == 0.25


def test_a_worker_that_ends_is_said_with_its_log(tmp_path):
    command = [sys.executable, "-c", WORKER]
    with (
        running_worker("w", command, {}, tmp_path / "log") as worker,
        pytest.raises(NotReadyError, match=r"(?s)w has ended.*too many"),
    ):
        worker.seconds(Case(Phase.DECODE, 100, 1, 1))
    with (
        pytest.raises(NotReadyError, match=r"(?s)w has ended.*at once"),
        running_worker("w", [sys.executable, "-c", "import sys; sys.exit('at once')"], {}, tmp_path / "log"),
    ):
        pass


def test_our_engine_computes_every_case(tiny_model_dir):
    small = cases(20, (1, 3), 24, 8)
    options = EngineOptions(str(tiny_model_dir("llama")), 1, small, {})
    with open_engine(parse_engine("tandem:kv-bytes=4000000"), options) as engine:
        assert all(0 < engine.seconds(case) < 60 for case in small)


class SlowlyFilled:
    """vLLM's engine as far as the worker uses it: one more request has its first token with every step."""

    def __init__(self, num_steps_to_fill: int) -> None:
        self._num_steps_to_fill = num_steps_to_fill
        self.asked: dict[str, int] = {}
        self.came: dict[str, int] = {}

    def add_request(self, request_id, prompt, params) -> None:
        self.asked[request_id] = params.max_tokens
        self.came[request_id] = 0

    def has_unfinished_requests(self) -> bool:
        return any(self.came[name] < wanted for name, wanted in self.asked.items())

    def step(self):
        started = [name for name, num in self.came.items() if num] + [
            name for name, num in self.came.items() if not num
        ][:1]
        running = [name for name in started if self.came[name] < self.asked[name]]
        for name in running:
            self.came[name] += 1
        output = lambda name: type("Output", (), {"token_ids": [0] * self.came[name]})()  # noqa: E731
        return [type("Request", (), {"request_id": name, "outputs": [output(name)]})() for name in running]


def test_vllms_time_is_of_the_tokens_after_the_last_first_one(monkeypatch):
    ticks = count()
    monkeypatch.setattr("bench.engines.vllm_worker.time.perf_counter", lambda: float(next(ticks)))
    module = type("vllm", (), {"SamplingParams": lambda **given: type("Params", (), given)()})
    monkeypatch.setattr("bench.engines.vllm_worker.importlib.import_module", lambda name: module)
    engine = SlowlyFilled(3)
    took_s = vllm_seconds(
        engine, {"phase": "decode", "num_sequences": 3, "num_prompt_tokens": 4, "num_new_tokens": 5}, 0
    )
    assert set(engine.came.values()) == {6}  # the prefill's token, and five
    assert took_s == pytest.approx(1 * 15 / 12)  # two came early, one of them twice


def test_vllms_worker_needs_nothing_of_ours(tmp_path):
    script = Path(__file__).parents[3] / "bench" / "engines" / "vllm_worker.py"
    subprocess.run([sys.executable, "-I", str(script), "--help"], check=True, capture_output=True, cwd=tmp_path)
    assert MARK in script.read_text()
