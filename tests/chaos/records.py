"""What came over one stream, and when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tandem.client import Piece
from tandem.types import FinishReason
from tests.chaos.cases import Case


class End(StrEnum):
    """How a client's request has ended for it."""

    OPEN = "open"
    READ = "read"  # the stream has ended
    CLOSED = "closed"  # the client hung up
    FAILED = "failed"  # with an error
    STUCK = "stuck"  # nothing came for too long


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer, as far as it came."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = FinishReason.NONE

    def with_piece(self, piece: Piece) -> "Heard":
        """What it is after one more message."""
        return Heard(
            (*self.token_ids, *piece.token_ids),
            self.text + piece.text_delta,
            (*self.logprobs, *(entry.logprob for entry in piece.logprobs)),
            piece.finish_reason,
        )


@dataclass(slots=True)
class Record:
    """One request of one client."""

    stream: int
    request_id: str
    case: Case
    began_s: float
    moments_s: list[float] = field(default_factory=list)  # of messages with tokens
    answers: dict[int, Heard] = field(default_factory=dict)
    end: End = End.OPEN
    ended_s: float = 0.0
    error: str = ""

    @property
    def num_tokens(self) -> int:
        """Of all answers so far."""
        return sum(len(heard.token_ids) for heard in self.answers.values())

    @property
    def heard_s(self) -> float:
        """When something came last."""
        return self.moments_s[-1] if self.moments_s else self.began_s

    def take(self, piece: Piece, now_s: float) -> None:
        """A message came."""
        self.answers[piece.index] = self.answers.get(piece.index, Heard()).with_piece(piece)
        if piece.token_ids:
            self.moments_s.append(now_s)

    def close(self, end: End, now_s: float, error: str = "") -> None:
        """Nothing comes any more."""
        self.end, self.ended_s, self.error = end, now_s, error


Answers = Mapping[int, Heard]
