"""Where a block's keys and values lie in the KV segment."""

import json
from dataclasses import asdict, dataclass

LAYOUT = "kv1.weights2.ledger6"
"""Version of the segments' and the ledger's layout; part of the fingerprint.

It changes with whatever another release would read otherwise: that, and not the release, keeps two services apart.
"""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class KvLayout:
    """One pair of pools a layer, each ``[num_blocks, block_size, num_kv_heads, head_dim]``, keys before values.

    The segment is ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``, contiguous.
    """

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return self.token_bytes * self.block_size

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole segment."""
        return self.block_bytes * self.num_blocks

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the segment as one tensor."""
        return (self.num_layers, 2, self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim)

    def to_json(self) -> str:
        """For the wire; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "KvLayout":
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens`."""
    return -(-num_tokens // block_size)
