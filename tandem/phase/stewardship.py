"""What a steward (`tandem.cli.steward`) and the workers that it starts for a phase say to each other.

Each worker has one end of a stream socket, whose number is in its environment, beside its role. A word is a line.
"""

from enum import StrEnum

ENV_STEWARD_FD = "PHASE_STEWARD_FD"
ENV_ROLE = "PHASE_ROLE"


class Role(StrEnum):
    """How a worker comes to the phase's place."""

    FIRST = "first"  # nobody else is there
    SPARE = "spare"  # another worker serves until this one can


class Word(StrEnum):
    """One line."""

    SUCCESSOR_WANTED = "successor_wanted"  # of a worker: only a new process can have its share
    SERVING = "serving"  # of a worker: clients reach it at the phase's address
    RETIRE = "retire"  # of the steward: another worker serves
    NO_SUCCESSOR = "no_successor"  # of the steward: the spare worker ended before it served
