"""What this phase has in memd, kept while memd is away: the attachment, again and again, and the calls that need it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from tandem.errors import NotReadyError, StorageLostError
from tandem.kv.store import HolderStore, Holding, PromptTokens, SequenceLease, SequenceUpdate
from tandem.phase.storage import AttachmentLike, until_memd_answers
from tandem.types import Block

_log = structlog.get_logger()


class Hold:
    """A `HolderStore` whose calls go through while memd has this holder, and otherwise raise NotReadyError at once.

    A call that memd's end cuts off may have been carried out. So no call is under way when the holder attaches again,
    and what memd says then that it has is the truth from which the phase goes on.
    """

    def __init__(
        self, store: HolderStore, attachment: AttachmentLike, on_attached: Callable[[bool], None] = lambda _: None
    ) -> None:
        """`on_attached` hears when memd goes and comes."""
        self._store = store
        self._attachment = attachment
        self._tied = [name for name, segment in attachment.segments.items() if segment.kind.ends_with_its_maker]
        self._on_attached = on_attached
        self._attached = asyncio.Event()
        self._attached.set()
        self._num_calls = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def attachment(self) -> AttachmentLike:
        """The first, or the latest since."""
        return self._attachment

    @property
    def holder_id(self) -> int:
        """The same in every attachment."""
        return self._attachment.holder_id

    async def run(self, resume: Callable[[Holding], None]) -> None:
        """For ever; `resume` is told what the holder has, each time that memd is back, before any call goes through.

        StorageLostError: nothing of what was mapped and leased may be used any more.
        """
        while True:
            self._on_attached(True)
            await self._attachment.ended.wait()
            self._attached.clear()
            self._on_attached(False)
            _log.warning("memd.away", holder_id=self.holder_id)
            if self._tied:
                raise StorageLostError(f"{', '.join(self._tied)}: memory of a kind that has ended with memd")
            await self._quiet.wait()
            await self._attach_again()
            resume(self._attachment.holding)
            self._attached.set()

    async def next_reclaim(self) -> int:
        """Blocks that memd asks back; waits while it is away."""
        while True:
            await self._attached.wait()
            try:
                return await self._attachment.next_reclaim()
            except NotReadyError:
                await self._attachment.ended.wait()
                await asyncio.sleep(0)  # `run` is waiting for that too

    async def detach(self) -> None:
        """Ends the holder, if memd is there."""
        await self._attachment.detach()

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        """See `HolderStore`."""
        with self._call():
            return await self._store.lease_blocks(holder_id, num_blocks)

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        """See `HolderStore`."""
        with self._call():
            await self._store.return_blocks(holder_id, blocks)

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        """See `HolderStore`."""
        with self._call():
            return await self._store.acquire_sequence(holder_id, lease_id, request_id, create, domain)

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """See `HolderStore`."""
        with self._call():
            return await self._store.claim_prefix(holder_id, lease_id, keys, prompt)

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        """See `HolderStore`."""
        with self._call():
            return await self._store.find_blocks(holder_id, runs)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        """See `HolderStore`."""
        with self._call():
            return await self._store.update_sequences(holder_id, updates)

    @contextmanager
    def _call(self) -> Iterator[None]:
        if not self._attached.is_set():
            raise NotReadyError("memd is away")
        self._num_calls += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._quiet.set()

    async def _attach_again(self) -> None:
        before = self._attachment
        self._attachment = await until_memd_answers(before.attach_again)
        await before.detach()
        _log.info("memd.attached_again", holder_id=self.holder_id, num_spare=len(self._attachment.holding.spare))
