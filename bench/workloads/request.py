"""What a run will send, decided before it starts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """The first `num_tokens` tokens of the text that `content` names: equal spans are equal tokens within a run."""

    content: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a workload.

    A turn that `follows` another is sent `think_s` after that one's answer, with that one's prompt and answer before
    its own spans; `at_s` is then without meaning.
    """

    number: int  # names it in the workload
    at_s: float  # when it is to be sent, from the run's start
    spans: tuple[Span, ...]
    max_tokens: int  # of output; end-of-sequence tokens are ignored, so it is also the output's length
    follows: int | None = None
    think_s: float = 0.0

    @property
    def num_new_tokens(self) -> int:
        """Of the spans: the whole prompt, but for a turn that follows another."""
        return sum(span.num_tokens for span in self.spans)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, and who sends them: their own times, or `num_users` users who each wait for their answer."""

    name: str
    requests: tuple[PlannedRequest, ...]
    num_users: int | None = None

    @property
    def last_send_s(self) -> float:
        """When the last request with a time of its own is to be sent."""
        return max((request.at_s for request in self.requests if request.follows is None), default=0.0)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a prompt must respect."""

    vocab_size: int
    max_context_tokens: int  # prompt and answer together
