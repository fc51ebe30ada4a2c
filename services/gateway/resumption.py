"""What a client says of a request that it takes up again, and what of it cannot be. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.validation import Limits, ResolvedRequest
from tandem.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Origin:
    """What the answers depend on beside the request's fields; the first message of every stream has it."""

    seed: int
    arrival_unix_ns: int
    model_digest: str


@dataclass(frozen=True, slots=True)
class ResumedAnswer:
    """All that came of one answer before its stream broke."""

    index: int
    token_ids: tuple[int, ...] = ()
    finished: bool = False  # its end came too


@dataclass(frozen=True, slots=True)
class Resume:
    """A request that goes on. Without an origin nothing had come of it."""

    origin: Origin | None = None
    answers: tuple[ResumedAnswer, ...] = ()

    @property
    def arrival_unix_ns(self) -> int:
        """When the request came the first time; 0 when that is not known."""
        return 0 if self.origin is None else self.origin.arrival_unix_ns

    def answer(self, index: int) -> ResumedAnswer:
        """What came of that answer; nothing, when the client names none."""
        return next((answer for answer in self.answers if answer.index == index), ResumedAnswer(index))


NOTHING_CAME = Resume()


def check_origin(resume: Resume, model_digest: str) -> None:
    """The answers are this model's, and their seed is known. InvalidRequestError."""
    if resume.origin is None:
        if resume.answers:
            raise InvalidRequestError("resume.origin", "is missing; send that of the stream's first message")
    elif resume.origin.model_digest != model_digest:
        raise InvalidRequestError(
            "resume.origin.model_digest", "names another model than is served now; send the request without resume"
        )


def check_answers(resume: Resume, resolved: ResolvedRequest, limits: Limits) -> None:
    """Each is one of the request's, once, and none had come to its end. InvalidRequestError."""
    seen: set[int] = set()
    for number, answer in enumerate(resume.answers):
        if answer.index >= resolved.n or answer.index in seen:
            problem = f"is {answer.index}; name each of the answers 0 to {resolved.n - 1} once at most"
            raise InvalidRequestError(f"resume.answers[{number}].index", problem)
        seen.add(answer.index)
        if not answer.finished:
            _check_tokens(f"resume.answers[{number}].token_ids", answer.token_ids, resolved, limits)
    if sum(answer.finished for answer in resume.answers) == resolved.n:
        raise InvalidRequestError("resume.answers", "are all finished; there is nothing to go on with")


def _check_tokens(field_path: str, token_ids: Sequence[int], resolved: ResolvedRequest, limits: Limits) -> None:
    if len(token_ids) >= resolved.stop.max_tokens:
        problem = f"are {len(token_ids)}, as many as the answer may have; mark it as finished"
        raise InvalidRequestError(field_path, problem)
    if any(token_id >= limits.vocab_size for token_id in token_ids):
        raise InvalidRequestError(field_path, f"go beyond the vocabulary, which ends at {limits.vocab_size - 1}")
    if not set(resolved.stop.stop_token_ids).isdisjoint(token_ids):
        raise InvalidRequestError(field_path, "hold a stop token, which ended the answer; mark it as finished")
