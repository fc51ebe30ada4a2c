"""Metrics: one frozen bundle of Prometheus collectors a service, made on the registry that it is handed.

Names carry the prefix ``tandem:`` before the suffixes that serving dashboards and routers expect. Times are in
seconds, as Prometheus has them.
"""

from dataclasses import dataclass, fields
from threading import Thread
from typing import Protocol, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from tandem.errors import ConfigError
from tandem.types import Phase

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class ReplicaMetrics:
    """Each replica as the gateway sees it; all collectors have the label ``replica``, its name."""

    ready: Gauge  # 0 or 1
    requests_routed: Counter
    requests_running: Gauge
    prompt_tokens: Counter
    computed_tokens: Counter
    time_to_first_token_seconds: Histogram
    predicted_time_to_first_token_seconds: Histogram
    prediction_error_seconds: Counter
    known_blocks: Gauge
    cache_events: Counter
    cache_news_unix_seconds: Gauge
    cache_resyncs: Counter

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """Registers the collectors; once a registry."""
        make, label = _Maker(registry), "replica"
        return cls(
            ready=make.gauge("replica_ready", "1 while memd and both phases are connected", label),
            requests_routed=make.counter("replica_requests_routed_total", "Requests sent there", label),
            requests_running=make.gauge("replica_requests_running", "Requests there that have not ended", label),
            prompt_tokens=make.counter("replica_prompt_tokens_total", "Prompt tokens of prefilled requests", label),
            computed_tokens=make.counter("replica_computed_tokens_total", "Of them, those not reused", label),
            time_to_first_token_seconds=make.histogram(
                "replica_time_to_first_token_seconds", "From routing to the first token", _LATENCY_BUCKETS_S, label
            ),
            predicted_time_to_first_token_seconds=make.histogram(
                "replica_predicted_time_to_first_token_seconds",
                "The same of the same requests, as predicted when they were routed",
                _LATENCY_BUCKETS_S,
                label,
            ),
            prediction_error_seconds=make.counter(
                "replica_prediction_error_seconds_total", "Between predicted and seen, whichever way", label
            ),
            known_blocks=make.gauge("replica_known_blocks", "Published blocks that the gateway knows of", label),
            cache_events=make.counter("replica_cache_events_total", "Events heard of its cache", label),
            cache_news_unix_seconds=make.gauge("replica_cache_news_unix_seconds", "When the last ones came", label),
            cache_resyncs=make.counter("replica_cache_resyncs_total", "Times that all was told anew, or gone", label),
        )

    def begin(self, replica: str) -> "ReplicaMetrics":
        """Those of it, which begin with 0. Looking one up by its label takes longer than counting."""
        return ReplicaMetrics(**{field.name: getattr(self, field.name).labels(replica) for field in fields(self)})

    def remove(self, replica: str) -> None:
        """Nothing is told of it any more."""
        for field in fields(self):
            getattr(self, field.name).remove(replica)


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """Requests as clients see them. Cache queries and hits are counted in prompt tokens.

    Of a prompt's tokens by source, exact and approximate ones have KV from the cache, computed at their own place or at
    another; recomputed ones are computed though their segment's KV was there, computed ones because there was none.
    """

    num_requests_waiting: Gauge
    num_requests_running: Gauge
    time_to_first_token_seconds: Histogram
    inter_token_latency_seconds: Histogram
    e2e_request_latency_seconds: Histogram
    prompt_tokens: Counter
    prompt_tokens_by_source: Counter  # by source: exact | approximate | recomputed | computed
    generation_tokens: Counter
    prefix_cache_queries: Counter
    prefix_cache_hits: Counter
    preemptions: Counter
    request_success: Counter  # by finished_reason: stop | length | abort
    request_failure: Counter  # by code: the gRPC status code's name; refused ones too
    replicas: ReplicaMetrics

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """Registers the collectors; once a registry."""
        make = _Maker(registry)
        return cls(
            num_requests_waiting=make.gauge("num_requests_waiting", "Requests in the queue"),
            num_requests_running=make.gauge("num_requests_running", "Requests in the phases"),
            time_to_first_token_seconds=make.histogram(
                "time_to_first_token_seconds", "From arrival to the first token", _LATENCY_BUCKETS_S
            ),
            inter_token_latency_seconds=make.histogram(
                "inter_token_latency_seconds", "From one token to the next", _TOKEN_BUCKETS_S
            ),
            e2e_request_latency_seconds=make.histogram(
                "e2e_request_latency_seconds", "From arrival to the last token", _LATENCY_BUCKETS_S
            ),
            prompt_tokens=make.counter("prompt_tokens_total", "Prompt tokens of prefilled sequences"),
            prompt_tokens_by_source=make.counter(
                "prompt_tokens_by_source_total", "Prompt tokens by where their KV came from", "source"
            ),
            generation_tokens=make.counter("generation_tokens_total", "Tokens sent to clients"),
            prefix_cache_queries=make.counter("prefix_cache_queries_total", "Prompt tokens looked up"),
            prefix_cache_hits=make.counter("prefix_cache_hits_total", "Prompt tokens whose KV was there"),
            preemptions=make.counter("num_preemptions_total", "Sequences sent to prefill again"),
            request_success=make.counter("request_success_total", "Finished requests", "finished_reason"),
            request_failure=make.counter("request_failure_total", "Failed requests", "code"),
            replicas=ReplicaMetrics.create(registry),
        )


@dataclass(frozen=True, slots=True)
class PhaseMetrics:
    """One phase's steps; every collector carries its ``phase`` label already."""

    num_sequences_waiting: Gauge
    num_sequences_running: Gauge
    num_spare_blocks: Gauge
    memd_connected: Gauge  # 0 or 1
    step_duration_seconds: Histogram
    iteration_tokens: Counter
    preemptions: Counter
    refreshed_tokens: Counter  # of decode
    partition_apply_seconds: Histogram

    @classmethod
    def create(cls, registry: CollectorRegistry, phase: Phase) -> Self:
        """Registers the collectors; once a registry."""
        make = _Maker(registry)
        by_phase = "phase"
        return cls(
            num_sequences_waiting=make.gauge(
                "num_sequences_waiting", "Sequences that wait in the phase", by_phase
            ).labels(phase),
            num_sequences_running=make.gauge("num_sequences_running", "Sequences in the batch", by_phase).labels(phase),
            num_spare_blocks=make.gauge("num_spare_blocks", "KV blocks leased ahead of need", by_phase).labels(phase),
            memd_connected=make.gauge("memd_connected", "1 while attached to memd", by_phase).labels(phase),
            step_duration_seconds=make.histogram(
                "step_duration_seconds", "One step, forward pass and sampling", _STEP_BUCKETS_S, by_phase
            ).labels(phase),
            iteration_tokens=make.counter("iteration_tokens_total", "Rows of all forward passes", by_phase).labels(
                phase
            ),
            preemptions=make.counter(
                "phase_preemptions_total", "Sequences dropped for lack of blocks", by_phase
            ).labels(phase),
            refreshed_tokens=make.counter(
                "refreshed_tokens_total", "Prompt tokens whose approximate KV was computed anew in decode", by_phase
            ).labels(phase),
            partition_apply_seconds=make.histogram(
                "partition_apply_seconds", "How long the loop stood for a new share", _STEP_BUCKETS_S, by_phase
            ).labels(phase),
        )


@dataclass(frozen=True, slots=True)
class MemdMetrics:
    """The pool of KV blocks."""

    kv_cache_usage_perc: Gauge  # 0..1; 1 is full
    cache_config_info: Gauge  # by block_size, num_gpu_blocks; always 1
    num_blocks: Gauge  # by state: free | spare | leased | cached
    num_sequences: Gauge
    num_holders: Gauge
    expired_leases: Counter

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """Registers the collectors; once a registry."""
        make = _Maker(registry)
        return cls(
            kv_cache_usage_perc=make.gauge("kv_cache_usage_perc", "Share of KV blocks that sequences have, 0 to 1"),
            cache_config_info=make.gauge("cache_config_info", "Shape of the KV pool", "block_size", "num_gpu_blocks"),
            num_blocks=make.gauge("num_blocks", "KV blocks", "state"),
            num_sequences=make.gauge("num_sequences", "Sequence leases"),
            num_holders=make.gauge("num_holders", "Attached phases"),
            expired_leases=make.counter("expired_leases_total", "Sequence leases ended by TTL"),
        )


@dataclass(frozen=True, slots=True)
class ControllerMetrics:
    """The split and what it rests on."""

    split_percent: Gauge  # by phase
    phase_connected: Gauge  # by phase; 0 or 1
    split_decisions: Counter
    split_applied: Counter  # by phase
    apply_timeouts: Counter  # by phase
    planner_failures: Counter
    requests_observed: Counter
    reports_refused: Counter  # by source
    admit_share: Gauge

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """Registers the collectors; once a registry."""
        make = _Maker(registry)
        return cls(
            split_percent=make.gauge("split_percent", "Share of the device as decided", "phase"),
            phase_connected=make.gauge("phase_connected", "1 while the phase's link is open", "phase"),
            split_decisions=make.counter("split_decisions_total", "Splits decided"),
            split_applied=make.counter("split_applied_total", "Shares that phases put in force", "phase"),
            apply_timeouts=make.counter("split_apply_timeouts_total", "Decisions that a phase did not answer", "phase"),
            planner_failures=make.counter("planner_failures_total", "Plans that failed, or that no phase can have"),
            requests_observed=make.counter("requests_observed_total", "Observations from the gateway"),
            reports_refused=make.counter("reports_refused_total", "Reports that cannot be true", "source"),
            admit_share=make.gauge("admit_share", "Of the arriving requests, what the planner says can be served"),
        )


class MetricsServer:
    """The HTTP endpoint of one registry; inert when it was started with port 0."""

    def __init__(self, server: "_HttpServer | None", thread: Thread | None) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """Where it listens, or 0."""
        return 0 if self._server is None else self._server.server_port

    def close(self) -> None:
        """Stops listening."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def start_metrics_server(registry: CollectorRegistry, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serves the registry over HTTP; port 0 starts nothing. ConfigError when the port is in use."""
    if port == 0:
        return MetricsServer(None, None)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError("metrics_port", f"cannot listen on {host}:{port}: {error.strerror}") from error
    return MetricsServer(server, thread)


class _HttpServer(Protocol):
    server_port: int

    def shutdown(self) -> None: ...

    def server_close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Maker:
    """Puts the prefix on and the registry in."""

    registry: CollectorRegistry

    def gauge(self, name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(f"tandem:{name}", doc, labels, registry=self.registry)

    def counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"tandem:{name}", doc, labels, registry=self.registry)

    def histogram(self, name: str, doc: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tandem:{name}", doc, labels, registry=self.registry, buckets=buckets)
