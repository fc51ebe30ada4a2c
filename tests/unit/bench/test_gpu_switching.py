"""Changes of decode's share as the GPU benchmark sees them, without a GPU."""

import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import torch

from bench.gpu import decoder, partitions
from bench.gpu.bench import Bench
from bench.gpu.decoder import Decoding
from bench.gpu.load import SMALLEST_PERCENT, PhaseLoad
from bench.gpu.partitions import GREEN, PERCENTAGE, TIMESHARE, BackendChoice, SmallestShare, backend_of
from bench.gpu.partner import Answer, Load, Partner, PartnerError, load_of, partner, tell
from bench.gpu.parts import switches
from bench.gpu.switching import Decode, Switch, figures, switches_between, usual_by_percent
from tandem.clock import ManualClock
from tandem.device.cuda.gpu import ENV_PERCENTAGE
from tandem.device.partition import Applied, PartitionBackend, RestartRequired
from tandem.runner.cuda.graphs import StepStream
from tandem.types import Phase, Split
from tests.support.partition_backends import GpuProcess

FIRST, SECOND = switches.PERCENTS
STEP_S = 0.010


def choice(name: str, run_dir: Path = Path(), *, is_dry: bool = True) -> BackendChoice:
    return BackendChoice(name, str(run_dir), is_alone=False, is_dry=is_dry)


# --- what a switch comes to


def a_switch(percent: int, *, stall_s: float = 0.0, usual_s: float = STEP_S, at_s: float = 100.0) -> Switch:
    """Wished for a millisecond before the step under way ends; three usual steps of the share before it."""
    end_s = at_s + {FIRST: 0.010, SECOND: 0.006}[percent] + stall_s
    return Switch(percent, at_s - 0.001, at_s, at_s + stall_s, end_s, [usual_s] * 3)


def test_a_stall_is_what_a_gap_has_beyond_a_usual_step_of_the_new_share() -> None:
    found = [a_switch(SECOND, usual_s=0.010), a_switch(FIRST, stall_s=0.002, usual_s=0.006)] * 2
    assert usual_by_percent(found, FIRST) == pytest.approx({FIRST: 0.010, SECOND: 0.006})
    said = figures(found, FIRST)
    assert said["switches"] == 4
    assert said["stall_us"] == pytest.approx({"p50": 0.0, "max": 2000.0}, abs=1e-6)
    assert said["step_us"] == pytest.approx({"p50": 6000.0, "max": 10000.0})
    assert said["takes_effect_ms"] == pytest.approx({"p50": 1.0, "max": 3.0})


def test_of_a_hundred_switches_there_is_a_99th_percentile() -> None:
    found = [a_switch(SECOND if index % 2 == 0 else FIRST, stall_s=0.001 * (index == 7)) for index in range(200)]
    found = [
        Switch(s.percent, s.wished_s, s.last_end_s, s.begin_s, s.end_s, [0.010 if s.percent == SECOND else 0.006])
        for s in found
    ]
    stalls = figures(found, FIRST)["stall_us"]
    assert isinstance(stalls, Mapping)
    assert (stalls["p99"], stalls["max"]) == (pytest.approx(0.0, abs=1e-6), pytest.approx(1000.0))


def test_a_first_switch_to_an_unknown_share_is_held_against_the_shortest_usual_step() -> None:
    said = figures([a_switch(SECOND, usual_s=0.004)], FIRST)
    assert said["stall_us"] == pytest.approx({"p50": 2000.0, "max": 2000.0})


# --- who serves


class Scripted(Partner):
    """A decode process that has one share, or with `has_all` every one; `log` gets what each is told."""

    def __init__(self, name: str, log: list[str], clock: ManualClock, *, has_all: bool = False) -> None:
        self.name, self._log, self._clock, self._has_all = name, log, clock, has_all
        self._answers: deque[Answer] = deque()

    def say(self, line: str) -> None:
        self._log.append(f"{self.name}: {line}")
        word, *percent = line.split()
        self._clock.advance(1.0)
        now_s = self._clock.now()
        times = {"last_end_s": now_s, "begin_s": now_s, "end_s": now_s + 1, "steps_s": [1.0]}
        match word:
            case decoder.WARM:
                self._answers.append(Answer(decoder.WARMED, 5.0))
            case decoder.SHARE if not self._has_all:
                self._answers.append(Answer(decoder.NEEDS, {ENV_PERCENTAGE: percent[0]}))
            case decoder.GO | decoder.SHARE:
                self._answers.append(Answer(decoder.SWITCHED, times))
            case decoder.RETIRE:
                self._answers.append(Answer(decoder.RETIRED, {"last_end_s": now_s, "steps_s": [2.0]}))

    def hear(self, *words: str) -> Answer:
        answer = self._answers.popleft()
        assert answer.word in words
        return answer

    def end(self) -> None:
        self._log.append(f"{self.name}: end")


def a_decode(log: list[str]) -> Decode:
    clock = ManualClock()

    def start(environment: Mapping[str, str]) -> Partner:
        log.append(f"start {dict(environment)}")
        return Scripted(f"new{len(log)}", log, clock)

    return Decode(start, clock)


def test_a_share_that_is_applied_is_switched_to_in_place() -> None:
    log: list[str] = []
    decode = a_decode(log)
    one = Scripted("one", log, ManualClock(), has_all=True)
    for percent in switches.PERCENTS:
        assert decode.stand_by(percent, one) == 5.0
    decode.begin(FIRST)
    found = list(switches_between(decode, switches.PERCENTS, lambda done: done < 3))
    decode.rest()
    assert [each.percent for each in found] == [SECOND, FIRST, SECOND]
    assert log[2:] == [f"one: go {FIRST}", *(f"one: share {each.percent}" for each in found), "one: retire"]


def test_processes_that_stand_by_take_over_from_each_other() -> None:
    log: list[str] = []
    decode, clock = a_decode(log), ManualClock()
    for percent, name in zip(switches.PERCENTS, ("one", "two"), strict=True):
        decode.stand_by(percent, Scripted(name, log, clock))
    decode.begin(FIRST)
    first, second = switches_between(decode, switches.PERCENTS, lambda done: done < 2)
    assert log[3:6] == [f"one: share {SECOND}", "one: retire", f"two: go {SECOND}"]
    assert log[6:] == [f"two: share {FIRST}", "two: retire", f"one: go {FIRST}"]
    assert first.last_end_s < first.begin_s  # the old one's last end, the new one's first step
    assert first.steps_s == second.steps_s == [2.0]


def test_a_new_process_is_ready_before_the_old_one_retires_and_then_that_one_ends() -> None:
    log: list[str] = []
    decode, clock = a_decode(log), ManualClock()
    for percent, name in zip(switches.PERCENTS, ("one", "two"), strict=True):
        decode.stand_by(percent, Scripted(name, log, clock))
    decode.begin(FIRST, keeps=False)
    decode.switch(SECOND)
    assert log[2:4] == ["two: end", f"one: go {FIRST}"]
    started = log.index(f"start {{'{ENV_PERCENTAGE}': '{SECOND}'}}")
    new = f"new{started + 1}"
    after = [f"{new}: warm {SECOND}", "one: retire", f"{new}: go {SECOND}", "one: end"]
    assert log[started + 1 :] == after


# --- a decode process


class FixedLoad:
    """Steps of 10 ms by the clock; the backend answers by turns."""

    def __init__(self, *outcomes: Applied | RestartRequired) -> None:
        self._outcomes = deque(outcomes)
        self.used: list[int] = []

    def use(self, percent: int) -> str:
        self.used.append(percent)
        return ""

    def apply(self, percent: int) -> Applied | RestartRequired:
        self.used.append(percent)
        return self._outcomes.popleft()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What a decode process answers."""
    answers: list[tuple[str, object]] = []
    monkeypatch.setattr(decoder, "tell", lambda word, value: answers.append((word, value)))
    return answers


def test_a_decode_process_takes_a_wish_up_at_its_step_s_end_and_tells_the_times(
    monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, object]]
) -> None:
    clock, lines = ManualClock(), deque([f"share {SECOND}\n", "share 31\n", "retire\n"])
    monkeypatch.setattr(decoder, "is_told", lambda: True)
    monkeypatch.setattr("sys.stdin", type("Lines", (), {"readline": lambda self: lines.popleft()})())
    load = FixedLoad(Applied(""), Applied(""), RestartRequired("", {"A": "b"}))
    Decoding(load, lambda: clock.advance(STEP_S), clock).serve(FIRST)  # type: ignore[arg-type]
    assert load.used == [FIRST, SECOND, 31]
    (_, first), (word, second), needs, (last_word, retired) = told
    assert isinstance(first, dict) and isinstance(second, dict) and isinstance(retired, dict)
    assert first["end_s"] == pytest.approx(STEP_S)
    assert (word, needs, last_word) == (decoder.SWITCHED, (decoder.NEEDS, {"A": "b"}), decoder.RETIRED)
    assert (second["last_end_s"], second["begin_s"], second["end_s"]) == pytest.approx((0.02, 0.02, 0.03))
    assert second["steps_s"] == pytest.approx([STEP_S])
    assert retired["steps_s"] == pytest.approx([STEP_S] * 2)  # it went on where another process was needed


# --- the backends behind it


def test_each_backend_is_the_phases_own_or_says_what_a_phase_s_would(tmp_path: Path) -> None:
    green, percentage, turns = (
        backend_of(choice(name, tmp_path), Phase.DECODE, StepStream()) for name in (GREEN, PERCENTAGE, TIMESHARE)
    )
    assert isinstance(green.apply(Phase.DECODE, Split(50, 50)), Applied)
    assert percentage.apply(Phase.DECODE, Split(31, 69)) == RestartRequired(
        f"started with 100 %; a new process needs {ENV_PERCENTAGE}=69", {ENV_PERCENTAGE: "69"}
    )
    assert (percentage.name, turns.name) == (PERCENTAGE, TIMESHARE)


def test_on_a_gpu_the_backend_is_made_as_the_phases_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[str, tuple[Phase, ...], bool]] = []

    def make(name: str, site: object) -> PartitionBackend:
        made.append((name, site.phases, site.has_steward))  # type: ignore[attr-defined]
        return backend_of(choice(GREEN), Phase.DECODE, StepStream())

    monkeypatch.setattr(partitions, "make_partition_backend", make)
    for name in (GREEN, PERCENTAGE, TIMESHARE):
        backend_of(choice(name, tmp_path, is_dry=False), Phase.PREFILL, StepStream())
    assert made == [(name, (Phase.PREFILL,), True) for name in (GREEN, PERCENTAGE, TIMESHARE)]


def test_the_smallest_share_is_one_group_and_prefill_has_the_others() -> None:
    had: dict[Phase, frozenset[int]] = {}
    for phase in Phase:
        gpu, stream = GpuProcess(), StepStream()
        stream.use = gpu.use_stream  # type: ignore[method-assign]
        said = SmallestShare(gpu.open_driver(), phase, stream).apply()
        had[phase] = gpu.sms
        assert said.startswith(f"SMs {len(gpu.sms)} of 132")
    assert {phase: len(sms) for phase, sms in had.items()} == {Phase.PREFILL: 120, Phase.DECODE: 8}
    assert not had[Phase.PREFILL] & had[Phase.DECODE]


def test_a_decode_step_is_taken_in_its_turn(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    bench = Bench(tmp_path / "v.json", ManualClock(), 100.0, tmp_path, is_dry=True)
    load = PhaseLoad(bench, Load(choice(TIMESHARE, tmp_path), num_layers=1), Phase.DECODE)
    load.use(SMALLEST_PERCENT)
    before = (tmp_path / "turns").read_bytes()
    load.decode_step(2)()
    assert (tmp_path / "turns").read_bytes() != before  # its account has grown


# --- processes that are told lines


def test_a_load_is_what_it_was_written_as() -> None:
    load = Load(choice(TIMESHARE, Path("here")), num_layers=8)
    assert load_of(load.text) == load


@pytest.fixture
def echo(tmp_path: Path) -> dict[str, str]:
    """A module named `echo`: says noise, then the line that it is told; on ``die`` it ends with 7."""
    (tmp_path / "echo.py").write_text(
        "import sys\nfor line in iter(sys.stdin.readline, ''):\n    if line == 'die\\n':\n        sys.exit(7)\n"
        "    print('{\"log\": 1}')\n    print('echo', repr(line.strip()).replace(\"'\", '\"'), flush=True)\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_partner_s_answers_are_told_from_what_else_it_prints(echo: dict[str, str]) -> None:
    with ExitStack() as stack:
        asked = stack.enter_context(partner("echo", Load(choice(GREEN)), echo))
        asked.say("one")
        assert asked.hear("echo") == Answer("echo", "one")
        asked.say("die")
        with pytest.raises(PartnerError, match="ended with 7 instead of echo"):
            asked.hear("echo")


def test_an_answer_is_a_word_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    tell("switched", {"a": [0.5]})
    word, _, rest = capsys.readouterr().out.partition(" ")
    assert (word, json.loads(rest)) == ("switched", {"a": [0.5]})


def test_a_backend_whose_process_ends_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def make_ready(bench: Bench, name: str, pair: object) -> None:
        if name == TIMESHARE:
            raise PartnerError("never there")

    def measure(bench: Bench, name: str, pair: object) -> None:
        asked.append(name)
        bench.record(name, 1)
        if name == GREEN:
            raise PartnerError("gone")

    monkeypatch.setattr(switches, "_make_ready", make_ready)
    monkeypatch.setattr(switches, "_of_one", measure)
    for name in ("partner", "peer"):
        monkeypatch.setattr(switches, name, lambda *_: nullcontext(Scripted("one", [], ManualClock())))
    switches.switches(Bench(tmp_path / "v.json", ManualClock(), 100.0, tmp_path, is_dry=True))
    found = json.loads((tmp_path / "v.json").read_text())
    assert asked == [GREEN, PERCENTAGE]
    assert (found["left_out"][TIMESHARE], found["left_out"][switches.ALONE]) == ("never there", "gone")
    assert not {GREEN, PERCENTAGE} & found["left_out"].keys()


def test_without_mps_what_needs_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(switches, "_make_ready", lambda bench, name, pair: None)
    monkeypatch.setattr(switches, "_of_one", lambda bench, name, pair: asked.append((name, pair.prefill is None)))
    for name in ("partner", "peer"):
        monkeypatch.setattr(switches, name, lambda *_: nullcontext(Scripted("one", [], ManualClock())))
    monkeypatch.setenv(switches.ENV_PIPE_DIRECTORY, switches.NOWHERE)
    switches.switches(Bench(tmp_path / "v.json", ManualClock(), 100.0, tmp_path, is_dry=False))
    left_out = json.loads((tmp_path / "v.json").read_text())["left_out"]
    assert asked == [(GREEN, True), (TIMESHARE, False)]
    assert left_out[PERCENTAGE] == left_out[switches.STANDING] == left_out[GREEN] == "no MPS"
