"""What a waiting prompt takes of its segments' entries: asked of memd and decided just before it is admitted."""

from dataclasses import dataclass, replace

from tandem.phase.leases import Leases
from tandem.phase.selective import entries_of, plan_selective
from tandem.phase.sequence import WorkingSequence
from tandem.reuse.plan import ReusePolicy
from tandem.types import PrefillResult


@dataclass(frozen=True, slots=True)
class EntrySearch:
    """`policy` is every prompt's, with the ratio of its own."""

    leases: Leases
    policy: ReusePolicy
    block_size: int

    async def look(self, sequence: WorkingSequence[PrefillResult]) -> None:
        """Plans the prompt's rows when it waits and has found its exact prefix. One that computes all asks nothing."""
        reuse = sequence.spec.reuse
        if reuse is None or reuse.ratio >= 1.0:
            return
        wanted = entries_of(sequence.token_ids, reuse, self.block_size)
        found = await self.leases.find_blocks([entry.keys for entry in wanted])
        entries = tuple(replace(entry, blocks=blocks) for entry, blocks in zip(wanted, found, strict=True))
        policy = replace(self.policy, ratio=reuse.ratio)
        sequence.entries = entries
        sequence.selective = plan_selective(
            len(sequence.token_ids), sequence.num_found_tokens, entries, policy, self.block_size
        )
