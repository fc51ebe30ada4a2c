"""What is told of replicas, in metrics with the label `replica`: what was sent where, and what was expected of it.

A replica that is closed is taken out: there are never more series than of replicas that are listed or not quiet yet.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.gateway.requests import Request
from tandem.clock import Clock
from tandem.kv.cache_store import CacheNews
from tandem.kv.journal import CacheCleared
from tandem.telemetry.metrics import ReplicaMetrics

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class _Routed:
    """A request at a replica."""

    replica: str
    at_s: float
    predicted_ttft_s: float | None  # None: there was no choice, so nothing was predicted


class RoutingReporter:
    """Of what is told of a replica that is not open, nothing is kept."""

    def __init__(self, metrics: ReplicaMetrics, clock: Clock, unix_ns: Callable[[], int]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._unix_ns = unix_ns
        self._open: dict[str, ReplicaMetrics] = {}  # each one's own
        self._routed: dict[Request, _Routed] = {}  # that have not ended

    def opened(self, replica: str) -> None:
        """It is known from now on."""
        self._open[replica] = self._metrics.begin(replica)

    def closed(self, replica: str) -> None:
        """It is known no more."""
        self._open.pop(replica, None)
        self._metrics.remove(replica)

    def ready(self, replica: str, is_ready: bool) -> None:
        """Whether all of it is connected."""
        if (metrics := self._open.get(replica)) is not None:
            metrics.ready.set(is_ready)

    def heard(self, replica: str, news: CacheNews, num_blocks: int) -> None:
        """Of its cache, of which so many blocks are known now."""
        if (metrics := self._open.get(replica)) is None:
            return
        metrics.cache_events.inc(len(news.events))
        metrics.cache_news_unix_seconds.set(self._unix_ns() / NS_PER_S)
        metrics.known_blocks.set(num_blocks)
        if any(isinstance(event, CacheCleared) for event in news.events):
            metrics.cache_resyncs.inc()

    def routed(self, request: Request, replica: str, predicted_ttft_s: float | None) -> None:
        """It goes there, perhaps from a replica that is lost. None: there was no choice, so nothing was predicted."""
        self.ended(request)
        self._routed[request] = _Routed(replica, self._clock.now(), predicted_ttft_s)
        if (metrics := self._open.get(replica)) is not None:
            metrics.requests_routed.inc()
            metrics.requests_running.inc()

    def prefilled(self, request: Request, num_computed_tokens: int) -> None:
        """Its first token is about to be taken in. Nothing happens when it was not routed."""
        routed = self._routed.get(request)
        if routed is None or (metrics := self._open.get(routed.replica)) is None:
            return
        metrics.prompt_tokens.inc(request.sequences[0].num_tokens)
        metrics.computed_tokens.inc(num_computed_tokens)
        seen_s = self._clock.now() - routed.at_s
        metrics.time_to_first_token_seconds.observe(seen_s)
        if routed.predicted_ttft_s is not None:
            metrics.predicted_time_to_first_token_seconds.observe(routed.predicted_ttft_s)
            metrics.prediction_error_seconds.inc(abs(seen_s - routed.predicted_ttft_s))

    def ended(self, request: Request) -> None:
        """It is there no more. Nothing happens when it was not routed."""
        routed = self._routed.pop(request, None)
        if routed is not None and (metrics := self._open.get(routed.replica)) is not None:
            metrics.requests_running.dec()
