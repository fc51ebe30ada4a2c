"""What is told of requests: metrics, the log, and the controllers' observations.

Nothing of what the gateway has computed for itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from services.gateway.ports import ObservationSink
from services.gateway.rates import RateMeter
from services.gateway.requests import TOKEN_SOURCES, Request, Sequence
from tandem.clock import Clock
from tandem.errors import TandemError
from tandem.rpc.status import status_of
from tandem.telemetry.metrics import GatewayMetrics
from tandem.types import FinishReason, Prefilled, RequestClass, RequestObservation

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of all replicas together."""

    requests: RateMeter  # that were completed
    tokens: RateMeter

    @classmethod
    def create(cls, clock: Clock) -> "Throughput":
        """Nothing yet."""
        return cls(RateMeter(clock), RateMeter(clock))


class DoorReporter:
    """Told of requests on their way in, before they have a replica."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._load = (0, 0)  # as told last

    @contextmanager
    def refusals(self, request_id: str) -> Iterator[None]:
        """Around all that comes before `admitted`: the error that refuses the request is counted and goes on."""
        try:
            yield
        except TandemError as error:
            code = status_of(error).name
            self._metrics.request_failure.labels(code).inc()
            _log.info("request.refused", request_id=request_id, code=code)
            raise

    def admitted(self, request: Request) -> None:
        """It has its place in the queue."""
        arrival = request.arrival
        _log.info(
            "request.admitted",
            request_id=arrival.request_id,
            num_prompt_tokens=len(arrival.prompt_token_ids),
            n=arrival.resolved.n,
            max_tokens=arrival.resolved.stop.max_tokens,
            priority=arrival.priority,
        )

    def load(self, num_waiting: int, num_requests: int) -> None:
        """How full the gateway is now: requests that wait, and all of them."""
        if self._load == (num_waiting, num_requests):
            return
        self._load = (num_waiting, num_requests)
        self._metrics.num_requests_waiting.set(num_waiting)
        self._metrics.num_requests_running.set(num_requests - num_waiting)


class Reporter:
    """Told by one replica's orchestrator what happens; keeps nothing of a request itself."""

    def __init__(
        self, clock: Clock, metrics: GatewayMetrics, observations: ObservationSink, throughput: Throughput
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._observations = observations
        self._throughput = throughput
        self._num_uncounted_tokens = 0
        self._by_source = {source: metrics.prompt_tokens_by_source.labels(source) for source in TOKEN_SOURCES}

    def prefilled(self, request: Request, sequence: Sequence, entry: Prefilled) -> None:
        """A first prefill: `entry` comes before its token is taken in."""
        if request.arrival.is_build:
            return
        num_prompt_tokens = len(request.arrival.prompt_token_ids)
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.prefix_cache_queries.inc(num_prompt_tokens)
        self._metrics.prefix_cache_hits.inc(sequence.num_cached_tokens)
        for source, num_tokens in sequence.num_tokens_by_source().items():
            self._by_source[source].inc(num_tokens)
        if not request.started:
            request.prefill_compute_ms = entry.compute_ms

    def token(self, request: Request, sequence: Sequence, now_s: float) -> None:
        """Comes before the token is taken in. It is counted with the others of its phase's message."""
        if sequence.num_new_tokens:
            self._metrics.inter_token_latency_seconds.observe(now_s - sequence.last_token_s)
        elif request.arrival.is_build:
            return
        elif sequence.index == 0:
            self._metrics.time_to_first_token_seconds.observe(now_s - request.arrival.clock_s)
        self._num_uncounted_tokens += 1

    def message_taken(self) -> None:
        """A phase's message is taken in: counts its tokens."""
        self._throughput.tokens.add(self._num_uncounted_tokens)
        self._metrics.generation_tokens.inc(self._num_uncounted_tokens)
        self._num_uncounted_tokens = 0

    def sent_back(self, sequence: Sequence, reason: str) -> None:
        """To the queue, with what it has."""
        if sequence.arrival.is_build:
            return
        self._metrics.preemptions.inc()
        _log.info(
            "sequence.requeued",
            request_id=sequence.arrival.request_id,
            index=sequence.index,
            reason=reason,
            num_output_tokens=len(sequence.output_token_ids),
        )

    def completed(self, request: Request, reason: FinishReason, unix_ns: int, num_waiting: int) -> None:
        """Every answer is complete; `reason` is the last one's."""
        if request.arrival.is_build:
            return
        self._throughput.requests.add()
        name = reason.name.lower()
        self._metrics.request_success.labels(name).inc()
        self._metrics.e2e_request_latency_seconds.observe(self._clock.now() - request.arrival.clock_s)
        self._observe(request, reason is not FinishReason.ABORT, unix_ns, num_waiting)
        _log.info("request.finished", finish_reason=name, **self._fields(request))

    def failed(self, request: Request, error: TandemError | None, unix_ns: int, num_waiting: int) -> None:
        """It ended early, with an error or because its client has gone (None)."""
        if request.arrival.is_build:
            return
        code = "CANCELLED" if error is None else status_of(error).name
        self._metrics.request_failure.labels(code).inc()
        self._observe(request, False, unix_ns, num_waiting)
        _log.info("request.failed", code=code, message="" if error is None else str(error), **self._fields(request))

    def _observe(self, request: Request, ok: bool, unix_ns: int, num_waiting: int) -> None:
        self._observations.observe(observation(request, self._clock.now(), ok, unix_ns, num_waiting))

    def _fields(self, request: Request) -> dict[str, object]:
        seconds = self._clock.now() - request.arrival.clock_s
        num_tokens = sum(len(sequence.output_token_ids) for sequence in request.sequences)
        return {"request_id": request.request_id, "num_output_tokens": num_tokens, "duration_ms": round(seconds * 1e3)}


def observation(request: Request, now_s: float, ok: bool, unix_ns: int, num_waiting: int) -> RequestObservation:
    """TTFT is the first answer's, or the whole time of a request that got no token; TPOT is the mean over the answers.

    Who asks for less than the usual priority is in no hurry: that is the batch class.
    """
    first = request.sequences[0]
    ttft_s = (request.first_token_s if request.started else now_s) - request.arrival.clock_s
    compute_ms = min(request.prefill_compute_ms, ttft_s * 1e3)
    return RequestObservation(
        request_id=request.request_id,
        ttft_ms=ttft_s * 1e3,
        ttft_wait_ms=ttft_s * 1e3 - compute_ms,
        ttft_compute_ms=compute_ms,
        tpot_ms=_mean_tpot_ms(request),
        num_prompt_tokens=len(request.arrival.prompt_token_ids),
        num_output_tokens=sum(sequence.num_new_tokens for sequence in request.sequences),
        num_cached_tokens=first.num_cached_tokens + first.num_approximate_tokens,
        ok=ok,
        unix_ns=unix_ns,
        num_waiting=num_waiting,
        request_class=RequestClass.BATCH if request.arrival.priority < 0 else RequestClass.INTERACTIVE,
    )


def _mean_tpot_ms(request: Request) -> float:
    """Over all gaps between one answer's tokens."""
    num_gaps = sum(max(0, sequence.num_new_tokens - 1) for sequence in request.sequences)
    seconds = sum(sequence.last_token_s - sequence.first_token_s for sequence in request.sequences)
    return seconds / num_gaps * 1e3 if num_gaps else 0.0
