"""When a sequence ends; the same rule for prefill's first token and for decode's."""

from tandem.types import FinishReason, StopSpec


def banned_tokens(stop: StopSpec, num_output_tokens: int) -> tuple[int, ...]:
    """Stop tokens are not drawn while there are fewer than `min_tokens` tokens of output."""
    return stop.stop_token_ids if num_output_tokens < stop.min_tokens else ()


def finish_reason(stop: StopSpec, token_id: int, num_output_tokens: int, num_context_tokens_left: int) -> FinishReason:
    """Of a token that has been drawn; `num_output_tokens` counts it."""
    if token_id in stop.stop_token_ids:
        return FinishReason.STOP
    if num_output_tokens >= stop.max_tokens or num_context_tokens_left <= 0:
        return FinishReason.LENGTH
    return FinishReason.NONE
