"""For which sizes of decode steps there are graphs; pure."""

from dataclasses import dataclass

FEWEST_BLOCKS = 64
WIDER = 4  # times the next narrower block tables


@dataclass(frozen=True, slots=True)
class Bucket:
    """A captured step's size: `num_rows` rows, each with room for `num_blocks` entries in the block table."""

    num_rows: int
    num_blocks: int


def bucket_for(num_rows: int, num_blocks: int) -> Bucket:
    """The smallest for so many rows, the longest of which has `num_blocks` blocks.

    Rows are doubled from one bucket to the next, tables four times as wide: a wide table costs its copy alone, since
    kernels read contexts' lengths, and each further bucket costs a capture.
    """
    width = FEWEST_BLOCKS
    while width < num_blocks:
        width *= WIDER
    return Bucket(1 << (num_rows - 1).bit_length(), width)
