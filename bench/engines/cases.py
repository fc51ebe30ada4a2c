"""What engines are measured on. Pure.

Everybody gets prompts of random tokens, of which no cache knows anything, and the same number of tokens to compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.types import Phase

PREFILL_TOKENS = 512
DECODE_BATCHES = (1, 8, 16)
DECODE_CONTEXT = 256
DECODE_STEPS = 32


@dataclass(frozen=True, slots=True)
class Case:
    """`num_sequences` prompts of `num_prompt_tokens`, then `num_new_tokens` of each.

    Of a prefill case the time from prompt to logits counts, of a decode case the time of the steps after it.
    """

    phase: Phase
    num_sequences: int
    num_prompt_tokens: int
    num_new_tokens: int

    @property
    def num_tokens(self) -> int:
        """That are computed in the time that counts."""
        each = self.num_prompt_tokens if self.phase is Phase.PREFILL else self.num_new_tokens
        return self.num_sequences * each

    @property
    def title(self) -> str:
        """For people."""
        if self.phase is Phase.PREFILL:
            return f"prefill of {self.num_prompt_tokens}"
        return f"decode, batch {self.num_sequences}, context {self.num_prompt_tokens + self.num_new_tokens // 2}"


def default_cases() -> tuple[Case, ...]:
    """One prompt alone; decode batches whose contexts grow around `DECODE_CONTEXT`."""
    return cases(PREFILL_TOKENS, DECODE_BATCHES, DECODE_CONTEXT, DECODE_STEPS)


def cases(prefill: int, batches: Sequence[int], context: int, num_steps: int) -> tuple[Case, ...]:
    """Prefill first."""
    decode = (Case(Phase.DECODE, batch, context - num_steps // 2, num_steps) for batch in batches)
    return (Case(Phase.PREFILL, 1, prefill, 1), *decode)
