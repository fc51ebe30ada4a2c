"""The requests of the load: few and distinct, so that the answer of each without any fault is known."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

# Text that a model goes on with firmly: where it is in doubt over thousands of tokens, the last bits of a logit decide.
BEGINNINGS = (
    "The capital of France is Paris, and the river that runs through it is the Seine. ",
    "Water boils at one hundred degrees Celsius and freezes at zero degrees. ",
    "A year has twelve months: January, February, March, April, May, June, July, August. ",
    "To make bread you need flour, water, salt and yeast; first mix them in a bowl. ",
)
OWN_TEXTS = (
    "The capital of Italy is",
    "The next three numbers after seven are",
    "My favourite colour is",
    "In the morning she opened the window and",
    "The largest planet of the solar system is",
)
MAX_REPEATS = 4  # of a beginning
MAX_TOKENS = (24, 64)
NEXT_SEED = 1000  # beyond every case's number
STOP_STRINGS = ("e", ".", "\n")  # likely in any text
STOP_FROM_TOKEN = 12


class Ending(Enum):
    """What the client does with its stream."""

    READ = auto()  # to the end
    CLOSE = auto()  # hangs up in the middle
    ABORT = auto()  # calls Abort in the middle, and reads on


@dataclass(frozen=True, slots=True)
class Case:
    """The same number is the same request."""

    number: int
    prompt: str
    sampling: Mapping[str, Any]
    ending: Ending = Ending.READ
    leave_after: int = 0  # tokens, unless it is read to the end

    def reseeded(self) -> "Case":
        """The same with another seed."""
        return replace(self, sampling={**self.sampling, "seed": self.sampling["seed"] + NEXT_SEED})


# A token of next to no probability has both its borders within a rounding of the drawn number: none such is drawn.
_DRAWN: Mapping[str, Any] = {"temperature": 0.7, "min_p": 0.02}
_STYLES: tuple[tuple[Mapping[str, Any], Ending], ...] = (
    ({"temperature": 0.0, "ignore_eos": True}, Ending.READ),
    ({"temperature": 0.7, "top_p": 0.95, "ignore_eos": True}, Ending.READ),
    ({**_DRAWN, "n": 2}, Ending.READ),
    ({**_DRAWN, "stop": STOP_STRINGS, "min_tokens": STOP_FROM_TOKEN}, Ending.READ),
    ({**_DRAWN, "logprobs": 2, "ignore_eos": True}, Ending.READ),
    ({**_DRAWN, "presence_penalty": 0.7, "repetition_penalty": 1.3, "ignore_eos": True}, Ending.READ),
    ({**_DRAWN, "ignore_eos": True}, Ending.CLOSE),
    ({"temperature": 0.0, "stop": STOP_STRINGS, "min_tokens": STOP_FROM_TOKEN}, Ending.READ),
    ({**_DRAWN, "ignore_eos": True}, Ending.ABORT),
)


def make_cases(num_cases: int) -> tuple[Case, ...]:
    """Of all styles in turn; their prompts begin like one another's."""
    return tuple(_case(number) for number in range(num_cases))


def _case(number: int) -> Case:
    rng = random.Random(f"case/{number}")
    sampling, ending = _STYLES[number % len(_STYLES)]
    max_tokens = rng.randint(*MAX_TOKENS)
    prompt = rng.choice(BEGINNINGS) * rng.randint(1, MAX_REPEATS) + rng.choice(OWN_TEXTS)
    return Case(
        number,
        prompt,
        {**sampling, "seed": number, "max_tokens": max_tokens},
        ending,
        rng.randint(1, max_tokens - 1),
    )
