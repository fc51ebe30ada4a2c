"""A short storm over the system as `tandem up` starts it, with a tiny model; README.md has the long one."""

import asyncio
import dataclasses
from collections import Counter

from tandem.clock import MonotonicClock
from tests.chaos import report
from tests.chaos.between import BETWEEN
from tests.chaos.cases import make_cases
from tests.chaos.experiment import Run, RunPlan
from tests.chaos.links import Link
from tests.chaos.records import End
from tests.chaos.schedule import FaultKind, Plan, draw_schedule
from tests.chaos.stopwatch import Stopwatch
from tests.chaos.system import SERVICES, SystemSpec, running

LINKS = ("link0", "link1")
PLAN = Plan(5, duration_s=8.0, num_kills=5, hang_timeout_s=2.0, services=SERVICES, links=LINKS)
NUM_STREAMS = 8
NUM_CASES = 9
KV_BYTES = 60 * (16 * 2 * 2 * 2 * 16 * 4)  # blocks of 16 tokens, with 2 layers, keys and values, 2 heads of 16 floats


def test_a_storm_of_faults_changes_no_answer_and_leaves_nothing(tiny_model_dir):
    spec = SystemSpec(str(tiny_model_dir("llama")), KV_BYTES, PLAN.hang_timeout_s, lease_ttl_s=3.0)
    with running(spec) as system:
        drawn_from = dataclasses.replace(PLAN, between=tuple(system.between))
        schedule = draw_schedule(drawn_from)
        plan = RunPlan(PLAN.seed, NUM_STREAMS, num_alone=0, num_cold=0, storm=schedule)
        links = {name: Link(system.gateway_socket) for name in PLAN.links}
        cases = make_cases(NUM_CASES)
        run = Run(plan, system, cases, clock=Stopwatch(MonotonicClock()), say=print)
        findings = asyncio.run(run.run(links))
        can_fill_disks = system.disk is not None
        unused = [name for name, link in system.between.items() if not link.num_connections]
    assert "\n".join(report.violations(drawn_from, schedule, findings)) == ""
    assert Counter(record.end for record in findings.records)[End.READ] > NUM_STREAMS
    done = Counter(injection.fault.kind for injection in findings.injections)
    assert done[FaultKind.KILL] == PLAN.num_kills
    assert {injection.fault.target for injection in findings.injections} >= {*SERVICES}
    assert bool(done[FaultKind.FULL_LOGS]) == can_fill_disks
    assert unused == [], "services connect through the links between them"
    assert {fault.target for fault in schedule} & {*BETWEEN} or not drawn_from.between
