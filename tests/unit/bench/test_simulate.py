import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.metrics import Slo
from bench.simulate.contest import DRAIN_S, Contest, Job, control_of, run_trial, static_modes
from bench.simulate.deployment import Setting, SimDeployment, simulate
from bench.simulate.events import EventQueue
from bench.simulate.loads import LoadSpec, planned, requests_of
from bench.simulate.pace import Activity, CadencePace, Surroundings
from bench.simulate.step_times import Contention, Device, StepContent, table_of
from bench.simulate.systems import cpu_system, h200_system, measured_table
from bench.workloads.lengths import RequestLength
from tandem.cli.main import main
from tandem.errors import ConfigError
from tandem.partition.monitor import WindowLimits
from tandem.partition.planner import Plan
from tandem.types import Phase, Split
from tests.support.measured_steps import STEPS

CPU = cpu_system()
LOAD = LoadSpec("shift", duration_s=30.0, seed=3, period_s=20.0, length_scale=0.25)
DECODE = StepContent(num_decode_rows=8, num_decode_keys=2048)
PROMPT = StepContent(num_prompt_rows=512)
MODES = ("colocated", "static:50,50", "semi-pd", "predictive")


def contest(system=CPU) -> Contest:
    return Contest(
        system=system,
        load=LOAD,
        slo=Slo(1200.0, 100.0),
        limits=WindowLimits(10.0, 400),
        interval_s=1.0,
        margin=0.1,
        initial=Split(50, 50),
        warm_up_s=0.0,
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_is_the_same_outcome_and_another_is_not(mode):
    setting = Setting(CPU, control_of(contest(), mode), 5, 60.0)
    requests = requests_of(LOAD, 2.0)
    first = simulate(setting, requests)
    assert first == simulate(Setting(CPU, control_of(contest(), mode), 5, 60.0), requests)
    assert first.records != simulate(replace(setting, control=control_of(contest(), mode), seed=6), requests).records


lengths = st.builds(RequestLength, st.integers(1, 600), st.integers(1, 60))
arriving = st.lists(st.tuples(st.floats(0, 5), lengths), min_size=1, max_size=25)


@settings(max_examples=40)
@given(arriving, st.sampled_from(MODES), st.integers(60, 400))
def test_every_request_gets_every_token_once_and_every_block_comes_back(load, mode, num_blocks):
    """Pools from barely one request large: sequences are preempted, computed again, and end all the same."""
    limits = replace(CPU.limits, num_blocks=num_blocks, num_reserve_blocks=2, max_sequences=8, max_running=12)
    system = replace(CPU, limits=limits)
    times_s, chosen = zip(*sorted(load, key=lambda pair: pair[0]), strict=True)
    deployment = SimDeployment(Setting(system, control_of(contest(system), mode), 1, 1.0))
    deployment.gateway.plan_arrivals(planned(times_s, chosen))
    deployment.events.run(1e6)
    records = deployment.outcome(1e6).records
    assert [record.ok for record in records] == [True] * len(load)
    assert [record.num_output_tokens for record in records] == [length.num_output_tokens for length in chosen]
    for record in records:
        assert record.token_times_s[0] > record.intended_s
        assert list(record.token_times_s) == sorted(set(record.token_times_s))
    assert deployment.pool.num_free == num_blocks


def test_a_lone_request_takes_what_the_table_says():
    """Prefill alone on its half, then decode alone on its own."""
    entries = [
        (phase, 100.0, rows, keys, 100.0 if phase is Phase.PREFILL else 10.0)
        for phase in Phase
        for rows in (1.0, 512.0)
        for keys in (0.0, 8192.0)
    ]
    quiet = replace(CPU, table=table_of("flat", entries), contention=Contention(1.0, 1.0, 0.0), cadence=None)
    setting = Setting(quiet, control_of(contest(quiet), "static:50,50"), 0, 60.0)
    (record,) = simulate(setting, planned([0.0], [RequestLength(100, 5)])).records
    assert record.ttft_ms == pytest.approx(200.0 + quiet.limits.handover_ms)
    assert record.tpot_ms == pytest.approx(20.0 + quiet.limits.between_steps_ms, rel=0.05)


def test_a_switch_costs_its_stall():
    class Alternating:
        name = "alternating"

        def plan(self, observations, current):
            return Plan(Split(50, 50) if current == Split(51, 49) else Split(51, 49), "to and fro")

    def mean_tpot(stall_ms: float) -> float:
        system = replace(CPU, switch=replace(CPU.switch, stall_ms=stall_ms))
        control = replace(control_of(contest(system), "predictive"), planner=Alternating(), interval_s=0.1)
        (record,) = simulate(Setting(system, control, 0, 60.0), planned([0.0], [RequestLength(10, 200)])).records
        return record.tpot_ms

    assert mean_tpot(50.0) > mean_tpot(0.0) * 1.3


def test_shares_that_overlap_share_when_both_are_busy_and_no_longer():
    device = Device(CPU.table, Contention(1.0, 1.0, 0.0), 0)
    decode = StepContent(num_decode_rows=8, num_decode_keys=2048)
    alone = device.step_ms(decode, 100.0, 0.0)
    assert device.step_ms(decode, 50.0, 0.0) > alone
    assert device.step_ms(decode, 100.0, 100.0) == pytest.approx(device.step_ms(decode, 50.0, 50.0))


@pytest.mark.parametrize(
    ("content", "own", "peer", "factor"),
    [
        (DECODE, 50.0, 50.0, 1.0),
        (DECODE, 50.0, 100.0, 2.0),
        (DECODE, 100.0, 50.0, 3.0),
        (PROMPT, 100.0, 50.0, 1.0),
    ],
    ids=["a core each", "a thread that shares its core", "threads that wait for one", "long ones that seldom wait"],
)
def test_where_threads_of_both_phases_meet_a_step_takes_what_half_of_the_device_takes_and_more(
    content, own, peer, factor
):
    """Such a step has begun already; the peer has come back."""
    device = Device(CPU.table, Contention(1.0, 1.0, 0.0, meeting_factor=3.0), 0)
    pace = CadencePace(Phase.DECODE, device, CPU.cadence)
    around = Surroundings(0.0, Split(50, 50), Activity.ABSENT if own == 100.0 else Activity.COMPUTING, own, peer)
    stretch = pace.stretch(content, around)
    assert stretch.percent == own
    assert stretch.duration_ms == pytest.approx(stretch.part * factor * CPU.table.ms(content, 50.0))


def test_switches_count_while_requests_arrive():
    """Requests for 20 seconds, whose answers go on for as long again: decode gets all when it is alone."""
    load = replace(LOAD, duration_s=20.0, length_scale=20.0, seed=0)
    counted = run_trial(Job(replace(contest(h200_system()), load=load), "predictive", 0.5, 0))
    setting = Setting(h200_system(), control_of(contest(h200_system()), "predictive"), 0, DRAIN_S)
    switches = simulate(setting, requests_of(load, 0.5)).switches
    assert counted.num_switches == sum(switch.at_s <= 20.0 for switch in switches) < len(switches)


@pytest.mark.parametrize("system", [CPU, h200_system()], ids=["cpu", "h200"])
def test_steps_take_longer_with_less_device_and_with_more_to_do(system):
    table = system.table
    for percent in (10.0, 20.0, 35.0, 50.0, 65.0, 90.0):
        assert table.ms(StepContent(num_decode_rows=8, num_decode_keys=4000), percent) > table.ms(
            StepContent(num_decode_rows=8, num_decode_keys=4000), percent + 10
        )
    joint = StepContent(num_prompt_rows=256, num_decode_rows=8, num_decode_keys=4000)
    assert table.ms(joint, 100.0) > table.ms(StepContent(num_prompt_rows=256), 100.0)


def test_a_measured_table_gives_back_what_was_measured():
    table = measured_table("t", STEPS)
    assert table.ms(StepContent(num_decode_rows=8, num_decode_keys=8 * 128), 50.0) == pytest.approx(80.0)
    assert table.ms(StepContent(num_prompt_rows=128), 100.0) == pytest.approx(640.0)
    with pytest.raises(ConfigError, match="both phases"):
        measured_table("t", STEPS[:2])


def test_events_of_one_instant_keep_their_order():
    events, seen = EventQueue(), []
    for number in range(5):
        events.after(1.0, lambda number=number: seen.append(number))
    events.run(0.5)
    assert not seen
    events.run(1.0)
    assert seen == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="passed"):
        events.after(-1.0, lambda: None)


def test_the_shifting_load_shifts_and_keeps_its_kinds_at_any_rate():
    requests = requests_of(replace(LOAD, duration_s=200.0), 10.0)
    first = [request for request in requests if request.at_s % 20.0 < 10.0]
    second = [request for request in requests if request.at_s % 20.0 >= 10.0]
    assert min(request.num_new_tokens for request in first) > max(request.num_new_tokens for request in second)
    assert len(requests) == 2000


@pytest.mark.parametrize("mode", ["dynamic", "static", "predictive:50,50", "static:0,50", "static:a,b"])
def test_modes_that_there_are_not(mode):
    with pytest.raises(ConfigError):
        control_of(contest(), mode)


def test_a_trial_counts_what_comes_after_the_warm_up():
    whole = run_trial(Job(contest(), "colocated", 2.0, 3))
    later = run_trial(Job(replace(contest(), warm_up_s=15.0), "colocated", 2.0, 3))
    assert 0 < later.num_requests < whole.num_requests == 60
    assert static_modes((Split(20, 80),)) == ("static:20,80",)


def test_the_command_writes_tables_json_and_a_plot(tmp_path):
    out, plot = tmp_path / "r.json", tmp_path / "r.png"
    words = ["bench", "simulate", "static", "predictive", "--load", "shift", "--duration", "30", "--warm-up", "5"]
    options = ["--rate", "2", "--splits", "35,65 65,35", "--tolerance", "0.5", "--goodput"]
    result = CliRunner().invoke(main, [*words, *options, "--out", str(out), "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert written["schema"] == "tandem.bench.simulate/1"
    assert [mode["mode"] for mode in written["modes"]] == ["static:35,65", "static:65,35", "predictive"]
    assert plot.read_bytes().startswith(b"\x89PNG")
