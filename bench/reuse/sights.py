"""The same documents never seen, seen for the first time, and with their entries there: what each prompt waits for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from bench.reuse.asking import Ask, Question, Reply
from bench.reuse.documents import DocumentPrompt, Tokens
from tandem.errors import NotReadyError

PROBE_PAUSE_S = 1.0
MAX_PROBES = 30
OPENING_TOKENS = 16  # of a probe, so that it begins like no other prompt
NUM_LEFT_OUT = 64  # of a document at most: its first tokens, and what is less than a block


class Sight(StrEnum):
    """What a prompt finds of its documents."""

    EXACT = "exact, cold"  # nothing, and asks for no segments
    FIRST = "first sight"  # nothing: it is computed whole, and entries are built behind it
    READY = "entries ready"


@dataclass(frozen=True, slots=True)
class Case:
    """`ratio` is what is asked for; None: exact reuse alone."""

    sight: Sight
    ratio: float | None

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.sight}, r = {self.ratio:g}" if self.sight is Sight.READY else str(self.sight)


@dataclass(frozen=True, slots=True)
class SightSample:
    """One prompt of one round. Those of a round have the same tokens, but for the documents' order at first sight."""

    number: int  # of the round, from 1
    case: Case
    num_prompt_tokens: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class SightPlan:
    """One prompt a round, the first of which is not counted; `run_id` keeps them from what earlier runs left."""

    prompts: tuple[DocumentPrompt, ...]
    ratios: tuple[float, ...]
    run_id: str

    @property
    def cases(self) -> tuple[Case, ...]:
        """In the order in which they are shown."""
        ready = (Case(Sight.READY, ratio) for ratio in self.ratios)
        return (Case(Sight.EXACT, None), Case(Sight.FIRST, self.ratios[0]), *ready)


@dataclass(frozen=True, slots=True)
class Asker:
    """A deployment, with what it takes to wait until its entries are built."""

    ask: Ask
    pause: Callable[[float], None]  # seconds
    opening: Callable[[str, int], Tokens]  # tokens that no prompt has, by a name


def ask_round(plan: SightPlan, number: int, asker: Asker) -> Iterator[SightSample]:
    """Every case once. Whether the exact one is the first or the last changes, and so does the ratios' order."""
    exact, first, *ready = plan.cases
    start = number % len(ready)
    if number % 2:
        yield _sample(plan, number, exact, asker)
    yield _sample(plan, number, first, asker)
    wait_ready(plan.prompts[number], _salt(plan, number, first), min(plan.ratios), asker)
    for case in (*ready[start:], *ready[:start]):
        yield _sample(plan, number, case, asker)
    if not number % 2:
        yield _sample(plan, number, exact, asker)


def wait_ready(prompt: DocumentPrompt, salt: str, ratio: float, asker: Asker) -> None:
    """Until a prompt with these documents finds all their entries. NotReadyError: none does.

    Each probe has an opening of its own: one that finds nothing leaves its KV, and the next may not begin like it.
    """
    for number in range(MAX_PROBES):
        asker.pause(PROBE_PAUSE_S)
        reply = asker.ask(prompt.ask(salt, ratio=ratio, opening=asker.opening(f"{salt}/{number}", OPENING_TOKENS)))
        if _are_found(reply, ratio):
            return
    problem = "the documents are not reused; they may be too short, or memd's pool too small"
    raise NotReadyError(f"{MAX_PROBES} prompts after their first sight {problem}")


def _are_found(reply: Reply, ratio: float) -> bool:
    num_tokens = sum(segment.end - segment.start for segment in reply.segments)
    return bool(reply.segments) and (
        reply.num_approximate_tokens >= (1 - ratio) * num_tokens - NUM_LEFT_OUT * len(reply.segments)
        and all(segment.num_approximate for segment in reply.segments)
    )


def _sample(plan: SightPlan, number: int, case: Case, asker: Asker) -> SightSample:
    question = _question(plan, number, case)
    return SightSample(number, case, len(question.token_ids), asker.ask(question))


def _question(plan: SightPlan, number: int, case: Case) -> Question:
    """At first sight the documents stand in another order: the prompt itself is to be in no cache afterwards."""
    turn = 1 if case.sight is Sight.FIRST else 0
    return plan.prompts[number].ask(_salt(plan, number, case), ratio=case.ratio, turn=turn)


def _salt(plan: SightPlan, number: int, case: Case) -> str:
    return f"{plan.run_id}/{number}/{'cold' if case.sight is Sight.EXACT else 'documents'}"
