"""Deployments of several replicas: how they are named, planned and shown."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.deployment.local import SEMI_PD
from bench.deployment.open import DeploymentOptions, local_services, num_replicas, parse_deployment, parse_deployments
from bench.deployment.replicas import computed_tokens, metrics_ports, replicas_of
from bench.display import replica_table
from bench.load.metrics import summarise
from bench.load.records import RequestRecord
from bench.results import Latencies, Run, WorkloadFacts
from bench.reuse.system import parse_local_tandem
from tandem.device.cpu.confinement import confined, replica_cores
from tandem.errors import ConfigError, NotReadyError
from tandem.telemetry.metrics import MetricsServer, PhaseMetrics, start_metrics_server
from tandem.types import Phase

OPTIONS = DeploymentOptions("default", {"memd": {"kv-bytes": 5}, "prefill": {"chunk-tokens": 64}})


def test_replicas_are_one_of_the_settings_after_the_colon():
    spec = parse_deployment("semi-pd:replicas=2,gateway.router=round-robin")
    assert spec.num_replicas == 2
    assert local_services(spec, OPTIONS, Path("/x")).settings["gateway"] == {"router": "round-robin"}
    assert parse_deployment("colocated:replicas=3").num_replicas == 3
    for single in ("semi-pd", "static:50,50", "llama-server:replicas=2.gguf"):
        assert parse_deployment(single).num_replicas == 1


def test_routers_stand_side_by_side_under_names_of_their_own():
    texts = [f"semi-pd:replicas=2,gateway.router={name}" for name in ("round-robin", "cache-aware")]
    assert [spec.name for spec in parse_deployments(texts)] == texts


@pytest.mark.parametrize("parameter", ["replicas=", "replicas=0", "replicas=-1", "replicas=x", "replicas=2,replicas=2"])
def test_what_is_no_number_of_replicas_is_refused(parameter):
    with pytest.raises(ConfigError, match="replicas=N"):
        num_replicas(parameter)
    with pytest.raises(ConfigError, match="deployment"):
        parse_deployment(f"semi-pd:{parameter}")


def test_one_gateway_has_them_all_and_each_has_all_else():
    spec = parse_deployment("semi-pd:replicas=2,gateway.router=least-loaded")
    first, second = replicas_of(local_services(spec, OPTIONS, Path("/x")), 2)
    assert first.services == SEMI_PD
    assert second.services == tuple(service for service in SEMI_PD if service != "gateway")
    assert (first.run_dir, second.run_dir) == (Path("/x"), Path("/x/replica-1"))
    assert first.settings["gateway"] == {"router": "least-loaded", "replicas": "/x,/x/replica-1"}
    for each in (first, second):
        assert each.settings["memd"] == {"kv-bytes": 5}
        assert each.settings["prefill"]["chunk-tokens"] == 64
    assert len(set(metrics_ports([first, second]))) == 2
    assert first.processes is not second.processes


@pytest.mark.parametrize("num_cores", range(1, 9))
@pytest.mark.parametrize("count", range(1, 5))
def test_cores_are_shared_out_whole_and_evenly_or_not_at_all(num_cores, count):
    cores = range(10, 10 + num_cores)
    shares = [replica_cores(replica, count, cores) for replica in range(count)]
    if count == 1 or num_cores < count:
        assert shares == [()] * count
        return
    assert [core for share in shares for core in share] == list(cores)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_confined_command_is_still_the_same_process():
    assert confined(["a", "b"], ()) == ["a", "b"]
    assert confined(["a", "b"], (1, 3))[-2:] == ["a", "b"]


@pytest.fixture
def prefill_metrics():
    from prometheus_client import CollectorRegistry

    from tests.support.sockets import free_port

    registry, port = CollectorRegistry(), free_port()
    metrics = PhaseMetrics.create(registry, Phase.PREFILL)
    server: MetricsServer = start_metrics_server(registry, port, "127.0.0.1")
    yield metrics, port
    server.close()


def test_what_a_replica_has_computed_is_what_its_prefill_says(prefill_metrics):
    metrics, port = prefill_metrics
    metrics.iteration_tokens.inc(512)
    metrics.iteration_tokens.inc(88)
    assert computed_tokens([port, port]) == (600, 600)
    assert computed_tokens([]) == ()


def test_a_replica_that_says_nothing_is_named():
    with pytest.raises(NotReadyError, match=r"127\.0\.0\.1:1/metrics"):
        computed_tokens([1])


def run(deployment: str, num_cached: int, computed: tuple[int, ...]) -> Run:
    record = RequestRecord(0, 0.0, 0.0, (0.25, 0.3), 0.3, 1000, 2, num_cached, "")
    facts = WorkloadFacts("shared-prefix", "poisson", 1, 1.0, 0)
    summary = summarise([record], None)
    return Run(deployment, facts, summary, Latencies((), (), ()), computed_by_replica=computed)


def test_the_table_has_reuse_and_balance_of_those_with_replicas():
    runs = [run("two", 600, (300, 100)), run("two", 500, (250, 250)), run("one", 1, ())]
    console = Console(file=io.StringIO(), width=250)
    console.print(replica_table(runs))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]
    for row in (
        ["TTFT mean, ms", "250", "250", "250"],
        ["tokens reused", "550", "500", "600"],
        ["reused of prompts, %", "55.00", "50.00", "60.00"],
        ["tokens computed", "450", "400", "500"],
        ["largest share / mean", "1.25", "1.00", "1.50"],
    ):
        assert row in lines
    assert [line[0] for line in lines if line and line[1] == ""] == ["two"]


def test_hits_are_of_one_pool():
    with pytest.raises(ConfigError, match="one pool"):
        parse_local_tandem("semi-pd:replicas=2")
