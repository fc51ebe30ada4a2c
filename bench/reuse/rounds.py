"""The same prompts cold, half cached and cached, in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.reuse.asking import Ask, Question, Reply
from bench.workloads.request import Span
from bench.workloads.tokens import TokenRange, span_tokens

LEAST_TOKENS = 1  # what a cached prompt has to compute anyway


class Warmth(StrEnum):
    """What of a prompt has been computed before it is asked."""

    COLD = "cold"
    HALF = "half"
    CACHED = "cached"  # all of it
    LEAST = "one token"  # nothing, of a prompt of `LEAST_TOKENS`


@dataclass(frozen=True, slots=True)
class Step:
    """One question: the first `num_tokens` of the round's prompt of `length` tokens, in the cache that `salt` names.

    `warmth` None: it only fills that cache.
    """

    warmth: Warmth | None
    length: int
    num_tokens: int
    salt: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A step's reply. Samples of one round and length had the same prompt."""

    number: int  # of the round, from 1
    warmth: Warmth
    length: int
    reply: Reply


def plan_round(lengths: Sequence[int], number: int) -> Iterator[Step]:
    """Which length comes first changes with `number`, and whether cold and cached come before half or after it."""
    yield Step(Warmth.LEAST, LEAST_TOKENS, LEAST_TOKENS, f"{number}/one")
    start = number % len(lengths)
    for length in (*lengths[start:], *lengths[:start]):
        whole, half = f"{number}/whole", f"{number}/half"
        again = [Step(Warmth.COLD, length, length, whole), Step(Warmth.CACHED, length, length, whole)]
        rest = [Step(None, length, length // 2, half), Step(Warmth.HALF, length, length, half)]
        yield from (*rest, *again) if number % 2 else (*again, *rest)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; `run_id` keeps it from what earlier runs left in the same system."""

    lengths: tuple[int, ...]
    num_rounds: int  # one more is not counted
    num_output_tokens: int
    tokens: TokenRange
    run_id: str

    @property
    def num_steps(self) -> int:
        """That are asked, the uncounted round included."""
        return (self.num_rounds + 1) * len(list(plan_round(self.lengths, 0)))


def measure(plan: Plan, ask: Ask, advance: Callable[[], None]) -> tuple[Sample, ...]:
    """Of the counted rounds; `advance` is called after each step."""
    samples: list[Sample] = []
    for number in range(plan.num_rounds + 1):
        prompts = {length: _prompt(plan, number, length) for length in (LEAST_TOKENS, *plan.lengths)}
        for step in plan_round(plan.lengths, number):
            reply = ask(_question(plan, step, prompts))
            advance()
            if number > 0 and step.warmth is not None:
                samples.append(Sample(number, step.warmth, step.length, reply))
    return tuple(samples)


def _prompt(plan: Plan, number: int, length: int) -> tuple[int, ...]:
    return tuple(span_tokens(Span(f"{number}/{length}", length), plan.tokens, plan.run_id))


def _question(plan: Plan, step: Step, prompts: Mapping[int, tuple[int, ...]]) -> Question:
    token_ids = prompts[step.length][: step.num_tokens]
    return Question(token_ids, plan.num_output_tokens, f"{plan.run_id}/{step.salt}")
