"""One call of a client over all its attempts: what came of it, what is still to be asked for, and when. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tandem.clock import Clock
from tandem.errors import NotReadyError, QueueFullError
from tandem.rpc.status import RpcFailure, error_from_rpc
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb

RequestT = TypeVar("RequestT", pb.GenerateRequest, pb.ChatRequest)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a call that was cut off is taken up again; the pauses between attempts double."""

    give_up_s: float = 60.0  # since the last message that came, or the call's beginning; 0: at once
    first_pause_s: float = 0.05
    last_pause_s: float = 2.0


@dataclass(slots=True)
class _Heard:
    """What came of one answer."""

    token_ids: list[int] = field(default_factory=list)
    finished: bool = False


class Attempts(Generic[RequestT]):
    """Of one request. Every attempt but the first asks for what the ones before left out."""

    def __init__(
        self,
        request: RequestT,
        policy: RetryPolicy,
        timeout_s: float | None,
        *,
        clock: Clock,
        draw: Callable[[], float],
    ) -> None:
        """`draw`: from [0, 1); it spreads the clients of a server that comes back."""
        self._request: RequestT = request
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._end_s = None if timeout_s is None else clock.now() + timeout_s
        self._progress_s = clock.now()
        self._pause_s = policy.first_pause_s
        self._origin: pb.Origin | None = None
        self._answers: dict[int, _Heard] = {}

    @property
    def request(self) -> RequestT:
        """For the next attempt."""
        return self._request

    @property
    def time_left_s(self) -> float | None:
        """Until the call's deadline, if it has one."""
        return None if self._end_s is None else max(0.0, self._end_s - self._clock.now())

    @property
    def complete(self) -> bool:
        """Whether the end of every answer came."""
        num_answers = self._request.sampling.n if self._request.sampling.HasField("n") else 1
        return sum(heard.finished for heard in self._answers.values()) == num_answers

    def note(self, response: pb.GenerateResponse) -> None:
        """A message came."""
        self._progress_s = self._clock.now()
        self._pause_s = self._policy.first_pause_s
        if response.HasField("origin"):
            self._origin = response.origin
        heard = self._answers.setdefault(response.index, _Heard())
        heard.token_ids.extend(response.token_ids)
        heard.finished = response.finish_reason != 0

    def pause_s(self, failure: RpcFailure) -> float:
        """How long to wait before the next attempt. Raises the error when there is to be none.

        A server that is away is waited for; a full queue only by a request that was on its way before.
        """
        error = error_from_rpc(failure)
        waits = isinstance(error, NotReadyError) or (isinstance(error, QueueFullError) and self._is_taken_up)
        if not waits or self._clock.now() - self._progress_s >= self._policy.give_up_s:
            raise error from failure if isinstance(failure, BaseException) else error
        pause_s = self._pause_s * (1 + self._draw()) / 2
        self._pause_s = min(2 * self._pause_s, self._policy.last_pause_s)
        self._take_up()
        least_s = error.retry_delay_s if isinstance(error, QueueFullError) else 0.0
        wait_s, left_s = max(pause_s, least_s), self.time_left_s
        return wait_s if left_s is None else min(wait_s, left_s)

    @property
    def _is_taken_up(self) -> bool:
        return bool(self._request.HasField("resume"))

    def _take_up(self) -> None:
        answers = (
            pb.ResumedAnswer(index=index, token_ids=() if heard.finished else heard.token_ids, finished=heard.finished)
            for index, heard in sorted(self._answers.items())
        )
        self._request.resume.CopyFrom(pb.Resume(origin=self._origin, answers=answers))
