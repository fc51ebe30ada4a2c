"""What one request has to say and its client has not read yet."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import SlowReaderError, TandemError
from tandem.types import FinishReason, SegmentOutcome, Span, TokenLogprobs


@dataclass(frozen=True, slots=True)
class SegmentUsage:
    """A part of the prompt, and where its KV came from."""

    span: Span
    outcome: SegmentOutcome


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one answer, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    queue_ms: float = 0.0  # from its arrival until it was sent to prefill
    num_approximate_tokens: int = 0
    segments: tuple[SegmentUsage, ...] = ()
    num_refreshed_tokens: int = 0  # approximate ones that decode computed anew


@dataclass(slots=True)
class Piece:
    """A part of one answer, of one token or more. The last has a `finish_reason` and a `usage`.

    Nobody changes one. It is not frozen because one is made for each token, and freezing takes four times as long.
    """

    index: int
    text_delta: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()  # one a token, when asked for
    finish_reason: FinishReason = FinishReason.NONE
    matched_stop: str = ""
    usage: Usage | None = None


def merged(pieces: Sequence[Piece]) -> Piece:
    """Consecutive pieces of one answer as one. There is at least one."""
    last = pieces[-1]
    return Piece(
        index=last.index,
        text_delta="".join(piece.text_delta for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
        finish_reason=last.finish_reason,
        matched_stop=last.matched_stop,
        usage=last.usage,
    )


class OutputBuffer:
    """Written by the orchestrator, read by one handler. A reader that falls behind gets larger pieces.

    It ends after the last piece of the last of `num_answers` answers, or with an error, which comes before whatever
    is still unread.
    """

    def __init__(self, num_answers: int, max_unread_tokens: int) -> None:
        self._num_unfinished = num_answers
        self._max_unread_tokens = max_unread_tokens
        self._num_unread_tokens = 0
        self._unread: dict[int, list[Piece]] = {}  # by answer; the one that has waited longest comes first
        self._error: TandemError | None = None
        self._reader: asyncio.Future[None] | None = None  # waits for a change

    def put(self, piece: Piece) -> None:
        """Adds a piece. SlowReaderError when more is unread than may be; the piece is not kept then."""
        num_unread_tokens = self._num_unread_tokens + len(piece.token_ids)
        if num_unread_tokens > self._max_unread_tokens:
            raise SlowReaderError(
                f"{num_unread_tokens} tokens are unread and {self._max_unread_tokens} are kept; read the stream faster"
            )
        self._num_unread_tokens = num_unread_tokens
        self._num_unfinished -= piece.finish_reason is not FinishReason.NONE
        self._unread.setdefault(piece.index, []).append(piece)
        self._wake_reader()

    def fail(self, error: TandemError) -> None:
        """Ends the output; whatever is unread is dropped. The first error stays."""
        self._error = self._error or error
        self._unread.clear()
        self._wake_reader()

    async def get(self) -> Piece | None:
        """The next piece, all that is unread of one answer; None after the end. Raises the error of `fail`."""
        while not self._unread and self._error is None and self._num_unfinished:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self._error is not None:
            raise self._error
        if not self._unread:
            return None
        pieces = self._unread.pop(next(iter(self._unread)))
        piece = merged(pieces) if len(pieces) > 1 else pieces[0]
        self._num_unread_tokens -= len(piece.token_ids)
        return piece

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
