"""How much the gateway takes on, and how much it has."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the gateway takes on."""

    max_waiting: int  # requests
    max_running: int  # sequences
    max_waiting_tokens: int  # of the prompts of requests that wait
    max_waiting_of: Callable[[str], int | None]  # requests of one tenant; None: no bound of its own


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences by where they are."""

    num_waiting: int
    num_prefilling: int
    num_decoding: int
