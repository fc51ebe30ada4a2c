"""What a request that comes now may expect, and how many sequences get their tokens in time.

An overloaded system that takes everything on serves everything late. One that takes on what it can serve in time, and
refuses the rest at once, goes on serving as much in time as it can at its best.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.clock import Clock
from tandem.scheduler.pace import Pace
from tandem.types import Phase

PROMPT_DECAY = 0.9  # some ten prompts
STEP_DECAY = 0.98  # some fifty steps of decode
MARGIN = 0.8  # of what is promised: an expectation is a mean, and most are to be in time


@dataclass(frozen=True, slots=True)
class Promise:
    """What clients are promised; 0: nothing."""

    ttft_s: float
    tpot_s: float


class Prospects:
    """Told of what goes into the phases and comes out of them."""

    def __init__(self, promise: Promise, max_running: int, clock: Clock) -> None:
        self._promise = promise
        self._max_running = max_running
        self._prompts = Pace(clock, PROMPT_DECAY)  # tokens, those of them that were cached included
        self._answers = Pace(clock, STEP_DECAY)  # tokens of all sequences together
        self._num_in: Counter[Phase] = Counter()
        self._num_prompt_tokens = 0  # in prefill

    def sent(self, phase: Phase, num_tokens: int) -> None:
        """A sequence of so many tokens went into a phase."""
        self._num_in[phase] += 1
        if phase is Phase.PREFILL:
            self._num_prompt_tokens += num_tokens
            self._prompts.go_on()
        else:
            self._answers.go_on()

    def came_back(self, phase: Phase, num_tokens: int, is_computed: bool) -> None:
        """One of so many tokens that had been sent."""
        self._num_in[phase] -= 1
        if phase is Phase.PREFILL:
            self._num_prompt_tokens -= num_tokens
            if is_computed:
                self._prompts.note(num_tokens)
        if not self._num_in[phase]:
            (self._prompts if phase is Phase.PREFILL else self._answers).pause()

    def stepped(self, num_tokens: int) -> None:
        """Decode has drawn so many tokens, one for each sequence that it runs."""
        self._answers.note(num_tokens)

    @property
    def num_places(self) -> int:
        """Sequences that may be in the phases at once.

        A step of more sequences takes longer, but not in proportion: what the present number would allow is allowed.
        """
        each_s = self._answers.seconds_each
        if not (self._promise.tpot_s and each_s):
            return self._max_running
        return min(self._max_running, max(1, int(MARGIN * self._promise.tpot_s / each_s)))

    def is_too_late(self, num_tokens: int, num_requests: int, completions_per_s: float) -> bool:
        """Whether the promise of a first token is broken for one more, behind so many tokens of so many requests.

        Never behind nobody: the next one's time says how fast it goes now.
        """
        if not self._promise.ttft_s or not (num_requests or self._num_in.total()):
            return False
        prompts_s = (self._num_prompt_tokens + num_tokens) * self._prompts.seconds_each
        num_over = self._num_in.total() + num_requests + 1 - self.num_places
        place_s = num_over / completions_per_s if num_over > 0 and completions_per_s else 0.0
        return max(prompts_s, place_s) > MARGIN * self._promise.ttft_s


class Outlook:
    """The same over all replicas that get requests: what waits is shared out among them."""

    def __init__(self, replicas: Callable[[], Sequence[Prospects]]) -> None:
        self._replicas = replicas

    @property
    def num_replicas(self) -> int:
        """At least one."""
        return max(1, len(self._replicas()))

    def is_too_late(self, num_tokens: int, num_requests: int, completions_per_s: float) -> bool:
        """As of `Prospects`, in every one of them."""
        each, num = self._replicas(), self.num_replicas
        share = (-(-num_tokens // num), -(-num_requests // num), completions_per_s / num)
        return bool(each) and all(prospects.is_too_late(*share) for prospects in each)
