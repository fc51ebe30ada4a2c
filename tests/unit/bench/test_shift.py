"""`tandem bench shift`: what is asked, in which order, and what clients saw of a switch."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from bench.commands.shift import deployment_of
from bench.deployment.open import DeploymentKind, Target, own_settings
from bench.load.endpoint import EndpointSpec, Protocols
from bench.load.metrics import Slo, summarise
from bench.load.records import RequestRecord
from bench.results import provenance, write_result
from bench.shift.results import Attained, ShiftFacts, ShiftResult, ShiftRun, run_table, switch_table, total
from bench.shift.run import shift_workload, turns
from bench.shift.switches import AFTER_S, BEFORE_S, stalls
from tandem.errors import ConfigError
from tandem.partition.observations import RequestStatistics
from tandem.partition.status import AppliedShare, Decision, DecisionRecord, ShareApplied
from tandem.types import Phase, Split

FACTS = ShiftFacts(phase_s=60.0, num_phases=4, num_rounds=2, rate_per_s=2.0, length_scale=1.0, seed=3)
STARTED_S = 1_000.0


def stream(*token_times_s: float) -> RequestRecord:
    return RequestRecord(0, 0.0, 0.0, token_times_s, token_times_s[-1], 5, len(token_times_s), None, "")


def text_of(table: Table) -> str:
    console = Console(width=250, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def decided(at_s: float, after_ms: float) -> DecisionRecord:
    applied = AppliedShare(Phase.DECODE, ShareApplied(2, False, "cores", 1.5), after_ms)
    unix_ns = int((STARTED_S + at_s) * 1e9)
    return DecisionRecord(Decision(2, Split(80, 20), "why"), unix_ns, RequestStatistics(), applied=(applied,))


def test_a_switchs_gaps_are_held_against_those_before_it_and_those_elsewhere():
    steady = [number / 100 for number in range(1000)]  # 10 ms, for 10 s
    late = [10.0 + number / 50 for number in range(100)]  # 20 ms
    records = [stream(*steady), stream(5.0, 5.2), stream(*late)]
    seen = stalls([decided(5.0, after_ms=300.0)], records, STARTED_S)
    (switch,) = seen.switches
    assert (switch.at_s, switch.applied[0].stood_ms) == (pytest.approx(5.0), 1.5)
    assert switch.around.max_ms == pytest.approx(200.0)
    in_steady = round((0.3 + AFTER_S) * 100)
    assert switch.around.num_gaps == pytest.approx(in_steady + 1, abs=1)
    assert switch.before.max_ms == pytest.approx(10.0)
    assert switch.before.num_gaps == pytest.approx(BEFORE_S * 100, abs=1)
    assert seen.steady_gap_p99_ms == pytest.approx(20.0)


def test_decisions_of_other_runs_are_not_this_ones():
    records = [stream(0.0, 1.0, 2.0)]
    assert stalls([decided(-3.0, 1.0), decided(2.5, 1.0)], records, STARTED_S).switches == ()
    assert stalls([], [], STARTED_S).steady_gap_p99_ms == 0.0


def test_the_load_shifts_every_phase_and_rounds_differ():
    requests = shift_workload(FACTS, 8192).requests
    kinds = [int(request.at_s // FACTS.phase_s) % 2 for request in requests]
    prompts, answers = (
        [np.mean([of(each) for each, kind in zip(requests, kinds, strict=True) if kind == which]) for which in (0, 1)]
        for of in (lambda each: each.num_new_tokens, lambda each: each.max_tokens)
    )
    assert prompts[0] > 5 * prompts[1]
    assert answers[1] > 5 * answers[0]
    assert requests[-1].at_s < FACTS.phase_s * FACTS.num_phases
    assert shift_workload(FACTS, 8192, 1).requests != requests
    with pytest.raises(ConfigError):
        deployment_of("nobody")


def test_every_round_has_everybody_and_another_one_first():
    targets = [Target(name, EndpointSpec(Protocols.TANDEM, name)) for name in "abc"]
    order = [(turn.round_number, turn.name, turn.target.name) for turn in turns("ABC", targets, 2)]
    assert order == [(0, "A", "a"), (0, "B", "b"), (0, "C", "c"), (1, "B", "b"), (1, "C", "c"), (1, "A", "a")]


def test_planners_are_deployments():
    assert deployment_of("predictive").parameter == "controller.planner=predictive"
    assert deployment_of("static:80,20").kind is DeploymentKind.STATIC
    started = own_settings(deployment_of("semi-pd:20,80").parameter)["controller"]
    assert started == {"planner": "semi-pd", "prefill-percent": "20", "decode-percent": "80"}
    with pytest.raises(ConfigError):
        deployment_of("predictive:20")


def test_attainment_is_over_all_requests_of_all_rounds_and_the_best_static_is_its_measure(tmp_path):
    slo = Slo(500, 500)
    run = ShiftRun("predictive", 0, summarise([stream(0.1, 0.2)], slo), Attained(10, 9), Attained(30, 9), (), 4.0)
    (switch,) = stalls([decided(0.1, 1.0)], [stream(0.1, 0.2)], STARTED_S).switches
    runs = (
        replace(run, switches=(switch,)),
        replace(run, round_number=1, answer_heavy=Attained(0, 0)),
        replace(run, deployment="static:50,50", prompt_heavy=Attained(10, 8), answer_heavy=Attained(0, 0)),
        replace(run, deployment="static:80,20"),
        replace(run, deployment="colocated", prompt_heavy=Attained(10, 10), answer_heavy=Attained(0, 0)),
    )
    result = ShiftResult(provenance(), FACTS, slo, runs)
    assert total(result.of("predictive")).share == pytest.approx(27 / 50)
    assert result.best_static == pytest.approx(0.8)
    assert result.deployments == ("predictive", "static:50,50", "static:80,20", "colocated")
    shown = text_of(run_table(result))
    assert "54.0 %" in shown
    assert "0.68" in shown, "of the best static split"
    assert "80,20" in text_of(switch_table(result))
    write_result(tmp_path / "shift.json", result, ShiftResult)
    assert TypeAdapter(ShiftResult).validate_json((tmp_path / "shift.json").read_bytes()) == result
