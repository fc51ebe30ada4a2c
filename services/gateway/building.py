"""Entries of segments: computed as short prompts of the gateway's own, behind all that clients wait for.

An entry is what an ordinary prefill of the model's first token and the segment leaves in the cache, under a namespace
that no prompt has. The work is its tenant's; who gets the request's answer or its failure is nobody.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from services.gateway.detokenizer import TokenBytes
from services.gateway.rebuilds import Rebuilds
from services.gateway.requests import Arrival, Request, new_request
from services.gateway.reuse import PromptReuse, sightings
from services.gateway.validation import ResolvedRequest
from tandem.clock import Clock
from tandem.errors import NotReadyError, SequenceFailedError, TandemError
from tandem.reuse.entries import SegmentSights, Sight
from tandem.reuse.segments import Segment, SegmentOrigin
from tandem.types import ContentKind, DropReason, SamplingSpec, SegmentOutcome, StopSpec

MAX_AT_ONCE = 2
MAX_WAITING = 64
NUM_REMEMBERED = 16_384  # segments that were seen once, and as many that were built
NUM_REFUSED = 1024  # segments whose build ended a phase, or failed in it
LOWEST_PRIORITY = -(2**31)

NoteSegments = Callable[[Arrival, Sequence[SegmentOutcome]], None]

_HANDED_BACK = {reason.name.lower() for reason in (DropReason.DRAINING, DropReason.PREEMPTED, DropReason.LEASE_LOST)}
_ONE_TOKEN = ResolvedRequest(SamplingSpec(temperature=0.0), StopSpec(max_tokens=1), (), frozenset(), 1)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Build:
    """An entry to be built, as a request."""

    key: bytes
    arrival: Arrival


class SegmentBuilder:
    """Decides by `SegmentSights`, and has at most `MAX_AT_ONCE` under way. What does not succeed is dropped."""

    def __init__(
        self,
        *,
        admit: Callable[[Request], None],
        note_entry: Callable[[bytes], None],
        tokenizer: TokenBytes,
        draw_request_id: Callable[[], str],
        clock: Clock,
        unix_ns: Callable[[], int],
    ) -> None:
        """`note_entry` hears of each entry that has been built."""
        self._admit = admit
        self._note_entry = note_entry
        self._tokenizer = tokenizer
        self._draw_request_id = draw_request_id
        self._clock = clock
        self._unix_ns = unix_ns
        self._sights = SegmentSights(NUM_REMEMBERED)
        self._rebuilds = Rebuilds(NUM_REMEMBERED)
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: deque[_Build] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, arrival: Arrival, outcomes: Sequence[SegmentOutcome]) -> None:
        """A client's request has been prefilled. What it lacked may be worth an entry."""
        if arrival.reuse is None:
            return
        for segment, found in sightings(arrival.reuse, outcomes):
            if found:
                self._rebuilds.note_found(segment.key)
            elif segment.key not in self._refused and self._rebuilds.is_due(segment.key):
                self._see(segment, arrival, arrival.reuse)
        self._start()

    def _see(self, segment: Segment, arrival: Arrival, reuse: PromptReuse) -> None:
        at_once = segment.origin is SegmentOrigin.DECLARED or segment.key in self._rebuilds
        if self._sights.see(segment.key, is_declared=at_once) is not Sight.BUILD:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._sights.abandon(segment.key)
        else:
            self._waiting.append(_Build(segment.key, self._arrival(segment, arrival, reuse)))

    def _arrival(self, segment: Segment, arrival: Arrival, reuse: PromptReuse) -> Arrival:
        return replace(
            arrival,
            request_id=self._draw_request_id(),
            prompt_token_ids=(reuse.spec.first_token_id, *segment.token_ids),
            resolved=_ONE_TOKEN,
            priority=LOWEST_PRIORITY,
            clock_s=self._clock.now(),
            unix_ns=self._unix_ns(),
            cache_namespace=reuse.spec.namespace,
            resumed=False,
            reuse=None,
            content_kind=ContentKind.SEGMENT,
        )

    def _start(self) -> None:
        while self._waiting and len(self._tasks) < MAX_AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._build(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start()

    async def _build(self, build: _Build) -> None:
        request = new_request(build.arrival, self._tokenizer, max_unread_tokens=1)
        try:
            self._admit(request)
            while await request.output.get() is not None:
                pass
        except TandemError as error:
            self._give_up(build, error)
        else:
            self._sights.built(build.key)
            self._rebuilds.note_built(build.key)
            self._note_entry(build.key)

    def _give_up(self, build: _Build, error: TandemError) -> None:
        """One that may be what ended a phase is not tried again."""
        self._sights.abandon(build.key)
        if isinstance(error, SequenceFailedError):
            self._refused[build.key] = None
            if len(self._refused) > NUM_REFUSED:
                self._refused.popitem(last=False)
        _log.info("segment.not_built", request_id=build.arrival.request_id, message=str(error))


def build_error(reason: str) -> TandemError:
    """Of a build that a phase has let go: `reason` is a drop's, or another of the ways back to the queue."""
    error = NotReadyError if reason in _HANDED_BACK else SequenceFailedError
    return error(f"its phase let it go: {reason}")
