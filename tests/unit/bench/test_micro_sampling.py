"""What sampling adds to a decode step: a step's parts are all of it, the command measures every way of sampling."""

import pytest
import torch

from bench.micro import sampling
from bench.micro.sampling import SAMPLINGS, Plan, StepClock, StepParts, main, table
from tests.support.tiny_models import tiny_config


async def test_the_parts_of_a_step_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 11.0, 15.0, 16.0, 18.0, 20.0])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(moments))
    clock = StepClock(num_steps=1)
    clock.begin()
    with clock.forward():
        pass
    with clock.sampling():
        pass
    clock.begin()
    assert clock.steps == [StepParts(operators_ms=0.0, inputs_ms=4000.0, sampling_ms=2000.0, engine_ms=4000.0)]
    await clock.done.wait()


def test_overhead_is_what_is_not_the_operators() -> None:
    step = StepParts(operators_ms=18.0, inputs_ms=1.0, sampling_ms=0.5, engine_ms=0.5)
    assert step.overhead == pytest.approx(0.1)
    (shown,) = table({"greedy": step}, Plan(16, 256, 1, 1), 2).columns[-1].cells
    assert shown == "10.0%"


def test_the_command_measures_every_way_of_sampling(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    tiny_config("llama").save_pretrained(tmp_path)
    options = ["--batch", "2", "--context", "20", "--steps", "3", "--rounds", "1"]
    num_threads = torch.get_num_threads()
    try:
        assert main(["--model", f"random:{tmp_path}/config.json", "--threads", "1", *options]) == 0
    finally:
        torch.set_num_threads(num_threads)
    shown = capsys.readouterr().out
    assert all(name in shown for name in SAMPLINGS)
    assert shown.count("%") == len(SAMPLINGS)
