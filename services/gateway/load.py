"""How much the gateway takes on, and how much it has."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the gateway takes on."""

    max_waiting: int  # requests
    max_running: int  # sequences


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences by where they are."""

    num_waiting: int
    num_prefilling: int
    num_decoding: int
