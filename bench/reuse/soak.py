"""Prompts that share beginnings, in a pool too small for them, while phases are killed: no answer may change by it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from bench.deployment.local import LocalServices
from bench.reuse.asking import Ask, Question, Reply
from bench.workloads.request import Span
from bench.workloads.tokens import TokenRange, span_tokens

NUM_PREFIXES = 6
PREFIX_TOKENS = (16, 40, 90, 160)
MOST_OWN_TOKENS = 30
NUM_OUTPUT_TOKENS = 6
SALT = "soak"
VICTIMS = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What is asked, how many at once, and how often a phase is killed meanwhile."""

    num_requests: int
    num_at_once: int
    num_kills: int
    tokens: TokenRange

    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """The beginning of one of a few texts, then tokens of its own; the same at every call."""
        return tuple(self._prompt(number) for number in range(self.num_requests))

    def _prompt(self, number: int) -> tuple[int, ...]:
        rng = np.random.default_rng(number)
        shared = Span(f"shared/{rng.integers(NUM_PREFIXES)}", max(PREFIX_TOKENS))
        own = Span(f"own/{number}", int(rng.integers(1, MOST_OWN_TOKENS + 1)))
        beginning = span_tokens(shared, self.tokens, SALT)[: rng.choice(PREFIX_TOKENS)]
        return (*beginning, *span_tokens(own, self.tokens, SALT))


@dataclass(frozen=True, slots=True)
class SoakResult:
    """`num_other_answers` of the requests were answered otherwise than alone and cold."""

    num_requests: int
    num_other_answers: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_reusing_requests: int


def soak(plan: SoakPlan, ask: Ask, kill: Callable[[str], None], advance: Callable[[], None]) -> SoakResult:
    """Each request alone under a salt of its own; then all of them again, sharing, several at once.

    `kill` ends a phase and starts it again; `advance` is called after each answer.
    """
    prompts = plan.prompts()
    cold = [_asked(ask, prompt, str(number), advance) for number, prompt in enumerate(prompts)]
    warm = _share(plan, prompts, lambda prompt: _asked(ask, prompt, "shared", advance), kill)
    pairs = zip(cold, warm, strict=True)
    return SoakResult(
        num_requests=len(prompts),
        num_other_answers=sum(alone.token_ids != shared.token_ids for alone, shared in pairs),
        num_prompt_tokens=sum(map(len, prompts)),
        num_cached_tokens=sum(reply.num_cached_tokens for reply in warm),
        num_reusing_requests=sum(reply.num_cached_tokens > 0 for reply in warm),
    )


def revive(services: LocalServices, service: str) -> None:
    """Kills a service as ``kill -9`` does, and starts it again."""
    services.processes[service].kill()
    services.processes[service].wait()
    services.start(service)


def _asked(ask: Ask, prompt: tuple[int, ...], salt: str, advance: Callable[[], None]) -> Reply:
    reply = ask(Question(prompt, NUM_OUTPUT_TOKENS, salt))
    advance()
    return reply


def _share(
    plan: SoakPlan,
    prompts: Sequence[tuple[int, ...]],
    ask: Callable[[tuple[int, ...]], Reply],
    kill: Callable[[str], None],
) -> list[Reply]:
    kills = dict(_kills(plan))
    with ThreadPoolExecutor(plan.num_at_once) as users:
        asked = [users.submit(ask, prompt) for prompt in prompts]
        for num_done, _ in enumerate(as_completed(asked), start=1):
            if num_done in kills:
                kill(kills[num_done])
        return [future.result() for future in asked]


def _kills(plan: SoakPlan) -> Iterator[tuple[int, str]]:
    """After how many answers which phase is killed: evenly spread, in turns."""
    for number in range(plan.num_kills):
        yield (number + 1) * plan.num_requests // (plan.num_kills + 1), VICTIMS[number % len(VICTIMS)]
