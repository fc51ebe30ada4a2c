"""What a phase can work on at all."""

from dataclasses import dataclass

from tandem.kv.contents import DOMAIN_BYTES
from tandem.kv.layout import num_blocks_for
from tandem.types import SegmentReuse, SequenceSpec


@dataclass(frozen=True, slots=True)
class PhaseLimits:
    """Of the storage, the model and the configuration."""

    max_sequences: int
    block_size: int
    num_pool_blocks: int  # those that this phase could ever be granted
    vocab_size: int
    max_context_tokens: int


def problem_of(spec: SequenceSpec, limits: PhaseLimits) -> str:
    """Why the phase can never work on it; empty when it can. One bad sequence must not fail the others' step."""
    num_tokens = len(spec.token_ids)
    if not 0 < spec.num_prompt_tokens <= num_tokens:
        return f"num_prompt_tokens: {spec.num_prompt_tokens} of {num_tokens} tokens"
    if num_tokens >= limits.max_context_tokens:
        return f"token_ids: {num_tokens} leave no room in a context of {limits.max_context_tokens}"
    if max(spec.token_ids) >= limits.vocab_size:
        return f"token_ids: {max(spec.token_ids)} is outside the vocabulary of {limits.vocab_size}"
    if problem := _problem_of_contents(spec, limits):
        return problem
    num_blocks = num_blocks_for(num_tokens, limits.block_size)
    if num_blocks > limits.num_pool_blocks:
        return f"token_ids: {num_tokens} need {num_blocks} blocks; the pool gives {limits.num_pool_blocks}"
    return ""


def _problem_of_contents(spec: SequenceSpec, limits: PhaseLimits) -> str:
    if len(spec.domain) not in (0, DOMAIN_BYTES):
        return f"domain: {len(spec.domain)} bytes, not {DOMAIN_BYTES}"
    problem = "" if spec.reuse is None else _problem_of_reuse(spec.reuse, spec.num_prompt_tokens, limits)
    return problem or _problem_of_approximate(spec)


def _problem_of_reuse(reuse: SegmentReuse, num_prompt_tokens: int, limits: PhaseLimits) -> str:
    if not 0.0 <= reuse.ratio <= 1.0:
        return f"reuse.ratio: {reuse.ratio} is not in [0, 1]"
    if reuse.first_token_id >= limits.vocab_size:
        return f"reuse.first_token_id: {reuse.first_token_id} is outside the vocabulary of {limits.vocab_size}"
    past = 0
    for index, span in enumerate(reuse.spans):
        if not past <= span.start < span.end <= num_prompt_tokens:
            return f"reuse.spans[{index}]: {span.start} to {span.end} is not behind {past} within the prompt"
        past = span.end
    return ""


def _problem_of_approximate(spec: SequenceSpec) -> str:
    """What decode may write anew is behind all that others could find."""
    past = spec.num_prompt_tokens if spec.num_publishable_tokens is None else spec.num_publishable_tokens
    for index, span in enumerate(spec.approximate):
        if not past <= span.start < span.end <= spec.num_prompt_tokens:
            return f"approximate[{index}]: {span.start} to {span.end} is not behind {past} within the prompt"
        past = span.end
    return ""
