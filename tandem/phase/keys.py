"""The content keys of one sequence's blocks: what it looks for before it computes, and what it publishes after."""

from collections.abc import Sequence

from tandem.kv.contents import block_keys
from tandem.kv.store import KeyedBlock, PromptTokens
from tandem.types import ContentKind


class SequenceKeys:
    """Keys are computed as far as they are asked for, each once. With an empty namespace there are none."""

    def __init__(self, namespace: bytes, block_size: int, kind: ContentKind = ContentKind.PROMPT) -> None:
        """`kind` is what is published."""
        self.block_size = block_size
        self._namespace = namespace
        self._kind = kind
        self._keys: list[bytes] = []
        self._num_published = 0

    def of(self, token_ids: Sequence[int]) -> Sequence[bytes]:
        """Of all full blocks of `token_ids`, which begin with those of every call before."""
        if not self._namespace:
            return ()
        num_keyed = len(self._keys)
        start = self._keys[-1] if self._keys else self._namespace
        self._keys += block_keys(start, token_ids[num_keyed * self.block_size :], self.block_size)
        return self._keys[: len(token_ids) // self.block_size]

    def claimable(self, token_ids: Sequence[int]) -> Sequence[bytes]:
        """Of the blocks that may be another's: at least the last token is computed, for its logits."""
        return self.of(token_ids[:-1])

    def prompt(self, token_ids: Sequence[int]) -> PromptTokens | None:
        """What may be another's, whole blocks or not; None: nothing can."""
        if not self._namespace or len(token_ids) < 2:
            return None
        return PromptTokens(self._namespace, token_ids[:-1])

    def note_published(self, num_tokens: int) -> None:
        """The full blocks of the first `num_tokens` have been published, by whomever."""
        self._num_published = max(self._num_published, num_tokens // self.block_size)

    def publish(self, sealed_token_ids: Sequence[int]) -> tuple[KeyedBlock, ...]:
        """What is sealed now and was not published before."""
        first = self._num_published
        self.note_published(len(sealed_token_ids))
        keys = self.of(sealed_token_ids)
        return tuple(self._keyed(ordinal, sealed_token_ids) for ordinal in range(first, len(keys)))

    def _keyed(self, ordinal: int, token_ids: Sequence[int]) -> KeyedBlock:
        parent = self._keys[ordinal - 1] if ordinal else self._namespace
        own = token_ids[ordinal * self.block_size : (ordinal + 1) * self.block_size]
        return KeyedBlock(ordinal, self._keys[ordinal], parent, self._namespace, tuple(own), self._kind)
