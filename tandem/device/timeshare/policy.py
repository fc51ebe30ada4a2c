"""Whose turn it is: pure, over both phases' accounts. Stride scheduling (Waldspurger, Weihl 1995) of two, by time.

An account is what a phase has had of the device, in seconds per percent of its share; who has had less is due. A phase
that waits keeps its claim; one that was away has none, and joins where its peer stands. So a prefill chunk is followed
by as many decode steps as make up for it.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum

RETURN_S = 0.005  # who is due and ended a turn less than this ago is waited for: it is between two steps


class Stage(IntEnum):
    """What a phase wants. ABSENT is never written by a phase: it is what a dead one counts as."""

    ABSENT = 0
    AWAY = 1
    WAITING = 2
    RUNNING = 3


_NEXT = {
    Stage.ABSENT: {Stage.AWAY},
    Stage.AWAY: {Stage.WAITING},
    Stage.WAITING: {Stage.RUNNING},
    Stage.RUNNING: {Stage.AWAY},
}


@dataclass(frozen=True, slots=True)
class Account:
    """One phase's. `left_s`: when its last turn ended, on the machine's monotonic clock."""

    stage: Stage = Stage.ABSENT
    had_s: float = 0.0  # per percent of share
    left_s: float = -math.inf

    def enter(self, stage: Stage) -> "Account":
        """ValueError for a stage that does not follow."""
        if stage not in _NEXT[self.stage]:
            raise ValueError(f"{self.stage.name} is not followed by {stage.name}")
        return replace(self, stage=stage)


def ask(own: Account, peer: Account, now_s: float) -> Account:
    """The account of a phase that wants the device from now on."""
    was_away = now_s - own.left_s > RETURN_S
    had_s = max(own.had_s, peer.had_s) if was_away else own.had_s
    return replace(own.enter(Stage.WAITING), had_s=had_s)


def turn_from_s(own: Account, peer: Account) -> float:
    """When a waiting phase's turn begins; -inf: it has begun; inf: its peer has one first."""
    if peer.stage is Stage.RUNNING:
        return math.inf
    if peer.stage is Stage.ABSENT or own.had_s <= peer.had_s:
        return -math.inf
    return math.inf if peer.stage is Stage.WAITING else peer.left_s + RETURN_S


def end(own: Account, turn_s: float, percent: int, now_s: float) -> Account:
    """The account after a turn of `turn_s` seconds, under a share of `percent`."""
    return replace(own.enter(Stage.AWAY), had_s=own.had_s + turn_s / percent, left_s=now_s)
