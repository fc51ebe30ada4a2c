import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tandem.errors import ConfigError
from tandem.telemetry.metrics import (
    ControllerMetrics,
    GatewayMetrics,
    MemdMetrics,
    PhaseMetrics,
    start_metrics_server,
)
from tandem.types import Phase
from tests.support.sockets import free_port


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in families
            for sample in family.samples
        }


@pytest.fixture
def registry():
    return CollectorRegistry()


def names(registry: CollectorRegistry) -> set[str]:
    return {family.name for family in registry.collect()}


def test_the_gateway_has_the_conventional_names(registry):
    GatewayMetrics.create(registry)
    conventional = {
        "tandem:num_requests_waiting",
        "tandem:num_requests_running",
        "tandem:time_to_first_token_seconds",
        "tandem:inter_token_latency_seconds",
        "tandem:prefix_cache_queries",
        "tandem:prefix_cache_hits",
    }
    assert conventional <= names(registry)


def test_memd_has_the_conventional_names(registry):
    MemdMetrics.create(registry)
    assert {"tandem:kv_cache_usage_perc", "tandem:cache_config_info"} <= names(registry)


def test_bundles_share_one_registry_without_a_clash(registry):
    GatewayMetrics.create(registry)
    MemdMetrics.create(registry)
    ControllerMetrics.create(registry)
    PhaseMetrics.create(registry, Phase.DECODE)
    assert all(name.startswith("tandem:") for name in names(registry))


def test_two_services_do_not_share_collectors():
    first, second = CollectorRegistry(), CollectorRegistry()
    GatewayMetrics.create(first).num_requests_waiting.set(3)
    GatewayMetrics.create(second)
    assert first.get_sample_value("tandem:num_requests_waiting") == 3
    assert second.get_sample_value("tandem:num_requests_waiting") == 0


def test_phase_metrics_carry_their_phase(registry):
    metrics = PhaseMetrics.create(registry, Phase.PREFILL)
    metrics.step_duration_seconds.observe(0.02)
    assert registry.get_sample_value("tandem:step_duration_seconds_count", {"phase": "prefill"}) == 1


def test_a_scrape_shows_what_was_counted(registry):
    metrics = GatewayMetrics.create(registry)
    metrics.request_failure.labels("RESOURCE_EXHAUSTED").inc()
    port = free_port()
    server = start_metrics_server(registry, port)
    try:
        assert server.port == port
        assert scrape(port)["tandem:request_failure_total[('code', 'RESOURCE_EXHAUSTED')]"] == 1
    finally:
        server.close()
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_a_port_in_use_is_a_bad_key(registry):
    port = free_port()
    server = start_metrics_server(registry, port)
    with pytest.raises(ConfigError) as raised:
        start_metrics_server(CollectorRegistry(), port)
    server.close()
    assert raised.value.key == "metrics_port"
    assert str(port) in str(raised.value)


def test_port_0_starts_nothing(registry):
    server = start_metrics_server(registry, 0)
    assert server.port == 0
    server.close()
