import io

from rich.console import Console

from tandem.cli.health import Health
from tandem.cli.readiness import ServiceView
from tandem.cli.status import ReplicaReport, Report, draw
from tandem.cli.supervision import ProcessView
from tandem.kv.store import StorageStatistics
from tandem.partition.observations import LatencyStatistics, PhaseStatistics, RequestStatistics
from tandem.partition.status import ControllerStatus, Decision, PhaseStatus
from tandem.types import Fingerprint, Phase, Split


def drawn(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200, markup=False)
    console.print(draw(report))
    return console.file.getvalue()


SERVICES = {
    "memd": ServiceView(Health.SERVING, ProcessView("memd", "RUNNING", 4711, 1, 3725), ""),
    "decode": ServiceView(Health.UNREACHABLE, ProcessView("decode", "BACKOFF", 0, 1, 0), ""),
}
GATEWAY = {"gateway": ServiceView(Health.SERVING, ProcessView("gateway", "RUNNING", 4712, 1, 1), "")}
STORAGE = StorageStatistics(Fingerprint(), 1, 400, 300, 40, 50, 10, 3, 256 << 20, 1 << 30, ())


def report(**parts) -> Report:
    return Report({**SERVICES, **GATEWAY}, None, {0: ReplicaReport(**{"controller": None, "storage": None, **parts})})


def test_services_and_who_does_not_answer():
    text = drawn(report())
    assert text.splitlines()[1].split() == ["memd", "serving", "running", "4711", "1:02:05"]
    assert text.splitlines()[2].split() == ["decode", "unreachable", "backoff"]
    for name in ("controller", "gateway", "memd"):
        assert f"{name} does not answer" in text


def test_the_pool_is_shown_in_blocks_and_percent():
    text = drawn(report(storage=STORAGE))
    assert "12.5 % of 400 blocks leased · 40 spare, 10 cached, 300 free · 3 sequences" in text
    assert "weights 256 MiB, KV 1024 MiB" in text


def test_replicas_stand_below_each_other_and_none_has_a_title_where_there_is_one():
    silent, told = ReplicaReport(None, None), ReplicaReport(None, STORAGE)
    lines = [line.strip() for line in drawn(Report({**SERVICES, **GATEWAY}, None, {0: silent, 1: told})).splitlines()]
    assert lines.index("replica 0") < lines.index("kv         memd does not answer") < lines.index("replica 1")
    assert any(line.startswith("kv         12.5 %") for line in lines[lines.index("replica 1") :])
    assert "replica" not in drawn(report())


def test_a_replica_without_a_gateway_is_not_blamed_for_it():
    assert "gateway" not in drawn(Report(SERVICES, None, {0: ReplicaReport(None, STORAGE)}))


def test_the_split_and_each_phase_are_shown():
    steps = PhaseStatistics(LatencyStatistics(5, 20, 31), 80)
    phases = (
        PhaseStatus(Phase.PREFILL),
        PhaseStatus(Phase.DECODE, True, 9, "cpu-affinity", 1, "cores 1", steps),
    )
    requests = RequestStatistics(7, 0, LatencyStatistics(7, 120, 300), LatencyStatistics(7, 21.5, 40))
    text = drawn(report(controller=ControllerStatus(Decision(1, Split(60, 40), "fixed"), "static", phases, requests)))
    assert "prefill 60 % · decode 40 % (static: fixed)" in text
    assert "not connected to the controller" in text
    assert "step p50 20.0 ms, p99 31.0 ms · 80.0 tokens/s · cores 1" in text
    assert "TTFT p50 120 ms, p99 300 ms · TPOT p50 21.5 ms, p99 40.0 ms · 7 requests seen" in text


def test_of_both_phases_in_one_process_none_is_missed():
    phases = (PhaseStatus(Phase.PREFILL, True, 9), PhaseStatus(Phase.DECODE))
    controller = ControllerStatus(Decision(1, Split(50, 50), "x"), "static", phases, RequestStatistics())
    services = {"colocated": ServiceView(Health.SERVING, ProcessView("colocated", "RUNNING", 9, 1, 1), "")}
    text = drawn(Report(services, None, {0: ReplicaReport(controller, None)}))
    assert "prefill    step" in text
    assert "not connected" not in text
