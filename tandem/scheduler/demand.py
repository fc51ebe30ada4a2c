"""The blocks that a phase lacks, as its scheduler tells its block supply."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockDemand:
    """How many spare blocks must be at hand, by how much depends on them."""

    num_running_blocks: int = 0  # without them nothing, or not everything that runs, goes on
    num_joining_blocks: int = 0  # on top of those: to let the first of the waiting in

    @property
    def num_blocks(self) -> int:
        """Both together."""
        return self.num_running_blocks + self.num_joining_blocks


NO_DEMAND = BlockDemand()
