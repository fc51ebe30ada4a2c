"""Shares of a device. A phase applies its side of a `Split` at its own iteration's end."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tandem.types import Phase, Split


@dataclass(frozen=True, slots=True)
class Applied:
    """The share is in force; `detail` says what was done (cores, threads, SM groups)."""

    detail: str


@dataclass(frozen=True, slots=True)
class RestartRequired:
    """Only a process that was started with `environment` can have this share."""

    detail: str
    environment: Mapping[str, str]


class PartitionBackend(Protocol):
    """Applies one phase's side of a split to this process."""

    @property
    def name(self) -> str:
        """As in configuration and logs (``cpu-affinity``)."""
        ...

    @property
    def splits(self) -> tuple[Split, ...]:
        """Those that can be told from one another, and that a planner may choose among; prefill's share ascending."""
        ...

    @property
    def pause(self) -> Callable[[], None] | None:
        """To be called within long steps, on their thread: the peer has its turn when it is due. None: nobody waits."""
        ...

    def apply(self, phase: Phase, split: Split) -> Applied | RestartRequired:
        """Called between two steps, on their thread. DeviceError when the share cannot be had at all."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """Around each step, on its thread: where phases share time, it is entered when the device is this one's."""
        ...
