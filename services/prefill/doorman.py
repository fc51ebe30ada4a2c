"""Lets waiting prompts share what others have computed, just before they are admitted.

Each prompt looks once: memd is asked for the blocks that hold the tokens it begins with and, where it allows that, for
entries of its segments. A prompt whose next block is being computed by one that runs follows that one and looks again.
Nothing here waits in a step: answers come in between.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from services.prefill.reuse import EntrySearch
from tandem.kv.store import PromptTokens
from tandem.phase.crew import Crew
from tandem.phase.leases import Leases
from tandem.phase.roster import Roster
from tandem.phase.sequence import SequenceState, WorkingSequence
from tandem.scheduler.line import Line
from tandem.scheduler.prefill import ClaimPlan, WaitingPrompt, plan_claims
from tandem.scheduler.rank import rank_key
from tandem.types import Prefilled, PrefillResult

PromptSequence = WorkingSequence[PrefillResult]


@dataclass(frozen=True, slots=True)
class Room:
    """What admission has to give."""

    num_places: int
    num_spare_blocks: int


@dataclass(frozen=True, slots=True)
class Desk:
    """What the doorman needs of the engine."""

    roster: Callable[[], Roster[Prefilled, PrefillResult]]  # which is made after the doorman
    view: Callable[[PromptSequence], WaitingPrompt]
    room: Callable[[], Room]
    wake: Callable[[], None]


class Doorman:
    """The prompts that wait, in rank order: a phase's `Candidates`."""

    def __init__(self, leases: Leases, search: EntrySearch, crew: Crew, desk: Desk) -> None:
        self._leases = leases
        self._search = search
        self._crew = crew
        self._desk = desk
        self._line: Line[WaitingPrompt] = Line(rank_key)
        self._settled: set[int] = set()  # in line, and have looked
        self._followers: list[PromptSequence] = []
        self._asking = False

    def __len__(self) -> int:
        return len(self._line) + len(self._followers)

    def add(self, prompt: WaitingPrompt) -> None:
        """It waits from now on."""
        self._line.add(prompt)
        self.look()

    def discard(self, lease_id: int) -> None:
        """It waits no longer."""
        self._line.discard(lease_id)
        self._settled.discard(lease_id)

    def admissible(self) -> Iterator[WaitingPrompt]:
        """The first in line, as far as they have looked."""
        return takewhile(lambda prompt: prompt.lease_id in self._settled, self._line)

    def look(self) -> None:
        """Asks memd for whose turn it is; of one prompt at a time."""
        if self._asking:
            return
        while (plan := self._plan()).claim is not None and not self._may_find(plan.claim):
            self._settled.add(plan.claim)
            self._desk.wake()
        sharing = tuple(lease_id for lease_id in plan.give_up if self._desk.roster().get(lease_id).block_ids)
        if plan.claim is not None or sharing:
            self._asking = True
            self._crew.spawn(self._ask(ClaimPlan(plan.claim, sharing)))

    def call_followers(self) -> None:
        """What they wait for may be there now: they look again."""
        followers, self._followers = self._followers, []
        for sequence in followers:
            if sequence.state is SequenceState.FOLLOWING:
                self._desk.roster().enter(sequence, SequenceState.WAITING)

    @property
    def num_settled(self) -> int:
        """Prompts in line that have looked."""
        return len(self._settled)

    @property
    def has_followers(self) -> bool:
        """Whether `call_followers` would do anything."""
        return bool(self._followers)

    def _plan(self) -> ClaimPlan:
        room = self._desk.room()
        return plan_claims(
            self._line, self._settled, num_places=room.num_places, num_spare_blocks=room.num_spare_blocks
        )

    def _keys(self, lease_id: int) -> Sequence[bytes]:
        sequence = self._desk.roster().get(lease_id)
        return sequence.keys.claimable(sequence.token_ids)

    def _prompt(self, lease_id: int) -> PromptTokens | None:
        sequence = self._desk.roster().get(lease_id)
        return sequence.keys.prompt(sequence.token_ids)

    def _may_find(self, lease_id: int) -> bool:
        return self._prompt(lease_id) is not None or self._desk.roster().get(lease_id).spec.reuse is not None

    async def _ask(self, plan: ClaimPlan) -> None:
        for lease_id in plan.give_up:
            if lease_id in self._line:  # one may have left while another was asked for
                self._settled.discard(lease_id)
                await self._exchange(lease_id, (), None)
        if plan.claim is not None:
            await self._claim(plan.claim)
        self._asking = False
        self.look()
        self._desk.wake()

    async def _claim(self, lease_id: int) -> None:
        if lease_id not in self._line:
            return
        keys = self._keys(lease_id)
        sequence = await self._exchange(lease_id, keys, self._prompt(lease_id))
        if sequence is None:
            return
        if self._is_computed_elsewhere(sequence, keys):
            self._desk.roster().enter(sequence, SequenceState.FOLLOWING)
            self._followers.append(sequence)
            return
        self._drop_copy_unless_admissible(sequence)
        await self._search.look(sequence)
        if lease_id in self._line:
            self._settled.add(lease_id)

    def _drop_copy_unless_admissible(self, sequence: PromptSequence) -> None:
        """Nobody keeps what is to be copied: when blocks are so short that the prompt must wait, it soon goes."""
        room = self._desk.room()
        before = takewhile(lambda prompt: prompt.lease_id != sequence.lease_id, self._line)
        num_taken = sum(prompt.num_missing_blocks for prompt in before)
        if num_taken + self._desk.view(sequence).num_missing_blocks > room.num_spare_blocks:
            sequence.copy_source = None

    async def _exchange(
        self, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None
    ) -> PromptSequence | None:
        """The prompt with what it shares now; None when it has left meanwhile."""
        sequence = self._desk.roster().get(lease_id)
        lease = await self._leases.claim(lease_id, keys, prompt)
        if sequence.state is not SequenceState.WAITING:
            return None
        if lease is not None:
            sequence.adopt(lease)
            self._line.discard(lease_id)
            self._line.add(self._desk.view(sequence))
        return sequence

    def _is_computed_elsewhere(self, sequence: PromptSequence, keys: Sequence[bytes]) -> bool:
        """Whether a prompt that runs, or is about to, is to fill the first block that is missing, and to publish it."""
        place = len(sequence.block_ids)
        if place >= len(keys):
            return False
        roster = self._desk.roster()
        others = (*roster.running, *map(roster.get, self._settled))
        return any(keys[place : place + 1] == other.publishable_keys()[place : place + 1] for other in others)
