"""How fast prefill can be: what tells a deadline that can be kept from one that cannot."""

DECAY = 0.99  # with each observation: a split that gives prefill less is noticed after some hundred prompts
LEAST_TOKENS = 64  # of a prompt whose time says something of the speed


class PrefillSpeed:
    """The best of late, so that nothing is called impossible that may be possible."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0  # 0: not known

    def note(self, num_computed_tokens: int, compute_ms: float) -> None:
        """A prompt that was computed, alone or beside others."""
        if num_computed_tokens >= LEAST_TOKENS and compute_ms > 0:
            self._tokens_per_s = max(self._tokens_per_s * DECAY, num_computed_tokens / compute_ms * 1e3)

    def least_s(self, num_tokens: int) -> float:
        """How long that many take at least; 0 before anything is known."""
        return num_tokens / self._tokens_per_s if self._tokens_per_s else 0.0
