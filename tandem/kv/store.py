"""The seam between the memory daemon and everybody else.

`MemoryStore` is implemented by memd's own store over the `Ledger` and by the gRPC client; both pass the same contract
tests. Who owns what:

- *Spare* blocks belong to a holder (an attached phase), leased ahead so that no step waits. They return to the pool
  when its attachment ends.
- A *sequence lease* belongs to the request: the gateway names it, renews it and releases it. A phase acquires it,
  adds its spare blocks to it and seals tokens; the next phase acquires the same lease, and no KV moves. Acquiring
  takes the lease from whoever held it before, whose later updates are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.types import Block, ContentKind, Fingerprint


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """What a claim is for: all tokens that may be another's, in a namespace."""

    namespace: bytes
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class CopySource:
    """A published block that is nobody's to keep: its first `num_tokens` tokens are those that a lease lacks next."""

    block: Block
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceLease:
    """What the ledger holds of a sequence: its blocks by position, and how many tokens' KV is complete."""

    lease_id: int
    blocks: tuple[Block, ...]
    num_sealed_tokens: int
    copy_source: CopySource | None = None  # as an answer to a claim


@dataclass(frozen=True, slots=True)
class KeyedBlock:
    """The contents of a lease's block at position `ordinal` (see `tandem.kv.contents`): a block's number of tokens.

    `parent` is the key of the block before it, or, of the first, the namespace.
    """

    ordinal: int
    key: bytes
    parent: bytes
    namespace: bytes
    token_ids: tuple[int, ...]
    kind: ContentKind = ContentKind.PROMPT


@dataclass(frozen=True, slots=True)
class SequenceUpdate:
    """Extend, seal, publish: `add_blocks` come from the holder's spare ones; `num_sealed_tokens` never falls.

    Blocks in `publish` are sealed in full; others find them by their keys from then on. With `let_go`, the holder will
    not write to the lease's blocks any more. KV in the lease was copied out of `copied_from`: when one has another
    owner by now, what was read is not to be trusted, and the lease is taken from the holder.
    """

    lease_id: int
    add_blocks: tuple[Block, ...]
    num_sealed_tokens: int
    publish: tuple[KeyedBlock, ...] = ()
    let_go: bool = False
    copied_from: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """What the ledger says a holder has: its spare blocks, and the leases that it works on."""

    spare: frozenset[Block]
    lease_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class HolderProcess:
    """A holder's process as memd sees it. A pid alone may be another's some time later."""

    pid: int
    namespace: int  # in which that is its pid
    began_ticks: int  # after the machine's start


@dataclass(frozen=True, slots=True)
class HolderStatistics:
    """One attached phase."""

    holder_id: int
    service: str
    pid: int
    num_spare_blocks: int
    num_sequences: int


@dataclass(frozen=True, slots=True)
class StorageStatistics:
    """``num_blocks = free + spare + leased + cached``, always."""

    fingerprint: Fingerprint
    epoch: int
    num_blocks: int
    num_free_blocks: int
    num_spare_blocks: int
    num_leased_blocks: int
    num_cached_blocks: int
    num_sequences: int
    weight_bytes: int
    kv_bytes: int
    holders: tuple[HolderStatistics, ...]
    num_asked_blocks: int = 0  # in claims so far: blocks that were asked for by key
    num_claimed_blocks: int = 0  # of them, those that were there
    num_asked_tokens: int = 0  # in claims so far: tokens that might have been there
    num_claimed_tokens: int = 0  # of them, those that were, in whole blocks or to be copied
    num_evictions: int = 0  # cached blocks given up for others, so far
    num_pinned_blocks: int = 0
    num_pinnable_blocks: int = 0  # at most so many can be pinned
    num_segment_blocks: int = 0  # published, of segments
    max_segment_blocks: int = 0  # at most so many are
    num_reserve_blocks: int = 0  # kept from prefill
    lease_ttl_s: float = 30.0  # of a sequence lease that nobody renews


class HolderStore(Protocol):
    """What a holder does with its blocks and leases. Every call is atomic.

    NotReadyError of any of them: memd is away, and may or may not have done it. What the holder has (`Holding`), once
    it has attached again, says so.
    """

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        """Spare blocks; fewer than asked for, down to none, when the pool is low. NotFoundError: no such holder."""
        ...

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        """Gives spare blocks back. StaleBlockError or LeaseError when one is not the holder's; then none is."""
        ...

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        """Takes the lease over, or opens it when `create`. NotFoundError when it does not exist otherwise.

        It is opened for a sequence of `domain` (see `tandem.kv.occupants`; empty: not known), before anything is
        written for that. The answer names the occupants of blocks in which nothing is sealed.
        """
        ...

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """Lets a lease with no token of its own share the published blocks that `keys` name, from its start on.

        As many as follow one another without a gap, but those that are in no lease only while the reserve is whole.
        Of the `prompt`, whose blocks these are, what comes next may stand at the beginning of a published block: the
        answer names that, to copy from. With neither keys nor prompt, the lease gives up what it shares. A lease that
        holds more than full, sealed blocks stays as it is. NotFoundError: no such holder or lease. LeaseError: the
        lease is another holder's.
        """
        ...

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        """Published blocks to copy from: of each run of keys as many as follow one another without a gap.

        They are nobody's to keep: the update after the copy names them in `copied_from`. Finding counts as use.
        NotFoundError: no such holder.
        """
        ...

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        """Applies each update whole or not at all; returns the leases that are not this holder's (any more).

        The spare blocks named in a refused update stay the holder's. StaleBlockError when a block is not.
        """
        ...


class MemoryStore(HolderStore, Protocol):
    """Everything that can be asked of memd's pool."""

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        """Opens a lease that shares the parent's full, sealed blocks of the first `num_tokens` tokens.

        Returns the number of shared tokens, a multiple of the block size. NotFoundError: no parent.
        LeaseError: the child exists.
        """
        ...

    async def renew_sequences(self, lease_ids: Sequence[int]) -> frozenset[int]:
        """Starts the leases' time to live anew; returns those that do not exist."""
        ...

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        """Ends leases; returns how many blocks became free. Unknown ones are passed over."""
        ...

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        """Ends leases that a phase may still write to: each when no holder has it. Unknown ones are passed over."""
        ...

    async def statistics(self) -> StorageStatistics:
        """The pool as it is now."""
        ...
