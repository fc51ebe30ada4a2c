"""What is known of one request after a run. Times are seconds from the run's start."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request as its client saw it. `intended_s` is when it was due, whatever kept it from being sent then."""

    number: int
    intended_s: float
    sent_s: float
    token_times_s: tuple[float, ...]  # one a token; tokens that came together have the same time
    ended_s: float
    num_prompt_tokens: int
    num_expected_tokens: int
    num_cached_tokens: int | None  # None: the server does not say
    error: str  # empty: none
    queue_ms: float | None = None  # that it waited before the server began with it; None: the server does not say

    @property
    def ok(self) -> bool:
        """Whether it brought every token it was to bring."""
        return not self.error

    @property
    def num_output_tokens(self) -> int:
        """That came."""
        return len(self.token_times_s)

    @property
    def ttft_ms(self) -> float:
        """From when it was due to the first token. IndexError when none came."""
        return (self.token_times_s[0] - self.intended_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """The request's mean time a token after the first; None with a single token."""
        if self.num_output_tokens < 2:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (self.num_output_tokens - 1) * 1e3

    @property
    def e2e_ms(self) -> float:
        """From when it was due to its end."""
        return (self.ended_s - self.intended_s) * 1e3

    @property
    def send_delay_ms(self) -> float:
        """How late the generator was: large values mean that it, not the server, was measured."""
        return (self.sent_s - self.intended_s) * 1e3

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """ITL: the time between one arrival of tokens and the next."""
        times = sorted(set(self.token_times_s))
        return tuple((later - earlier) * 1e3 for earlier, later in pairwise(times))
