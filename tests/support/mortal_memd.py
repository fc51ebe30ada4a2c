"""A memd in this process that can be killed in the middle of any call, and started again over the same ledger."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from services.memd.store import LocalStore, StorageFacts
from tandem.clock import ManualClock
from tandem.errors import NotReadyError
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.store import Holding, PromptTokens, SequenceLease, SequenceUpdate
from tandem.types import Block, Fingerprint, Phase
from tests.support.fake_model import BLOCK_SIZE
from tests.unit.kv.test_ledger_crash import run_killed_at

T = TypeVar("T")

MAX_DEAD_TURNS = 8  # of the event loop
LINES = 60  # of the ledger's code, within which most calls end
RARE = 6.0  # calls of which there are few kill it so much more often


class MortalMemd:
    """A `HolderStore`, and what a gateway needs. `chance` decides which calls kill it, and where."""

    def __init__(self, num_blocks: int, chance: random.Random, kill_rate: float) -> None:
        self.num_blocks, self.reserve_blocks = num_blocks, 0
        self.num_deaths = 0
        self._chance = chance
        self._kill_rate = kill_rate
        self._buffer = bytearray(ledger_bytes(num_blocks, BLOCK_SIZE))
        self.ledger = Ledger.create(self._buffer, num_blocks=num_blocks, block_size=BLOCK_SIZE, epoch=1)
        self._store: LocalStore | None = self._serve(self.ledger)
        self._attachments: list[MortalAttachment] = []
        self._births: set[asyncio.Task[None]] = set()

    def attach(self, phase: Phase) -> "MortalAttachment":
        """A new holder."""
        store = self.alive()
        return self._attached(store, store.attach(phase, 1, Fingerprint()).holder_id)

    def attach_again(self, holder_id: int) -> "MortalAttachment":
        """The same holder."""
        store = self.alive()
        store.attach_again(holder_id)
        return self._attached(store, holder_id)

    def alive(self) -> LocalStore:
        """NotReadyError between death and birth."""
        if self._store is None:
            raise NotReadyError("memd is away")
        return self._store

    async def live_on(self) -> None:
        """It is not killed any more; if it is dead, `ledger` is what was left until it is born again."""
        self._kill_rate = 0.0
        while self._store is None:
            await asyncio.sleep(0)

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        return await self._call(lambda store: store.lease_blocks(holder_id, num_blocks))

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        await self._call(lambda store: store.return_blocks(holder_id, blocks), RARE)

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        return await self._call(lambda store: store.acquire_sequence(holder_id, lease_id, request_id, create, domain))

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        return await self._call(lambda store: store.claim_prefix(holder_id, lease_id, keys, prompt), RARE)

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        return await self._call(lambda store: store.find_blocks(holder_id, runs), RARE)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        return await self._call(lambda store: store.update_sequences(holder_id, updates))

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        """As a gateway does it: until memd has answered."""
        while True:
            try:
                return await self._call(lambda store: store.release_sequences(lease_ids))
            except NotReadyError:
                await asyncio.sleep(0)

    async def _call(self, call: Callable[[LocalStore], Awaitable[T]], weight: float = 1.0) -> T:
        store = self.alive()
        await asyncio.sleep(0)
        if store is not self._store:
            raise NotReadyError("memd died before it heard the call")
        result = self._run(call(store), weight)
        await asyncio.sleep(0)
        if store is not self._store:
            raise NotReadyError("memd died before it was heard")
        return result

    def _run(self, work: Awaitable[T], weight: float) -> T:
        results: list[T] = []

        def act() -> None:
            try:
                work.__await__().send(None)
            except StopIteration as ended:
                results.append(ended.value)

        if self._chance.random() >= self._kill_rate * weight:
            act()
        elif run_killed_at(self._chance.randrange(LINES), act) or results:
            self._die()
            raise NotReadyError("memd was killed")
        return results[0]

    def _die(self) -> None:
        self._store = None
        self.num_deaths += 1
        for attachment in self._attachments:
            attachment.ended.set()
        self._attachments.clear()
        self._births.add(asyncio.get_running_loop().create_task(self._be_born()))

    async def _be_born(self) -> None:
        for _ in range(self._chance.randint(1, MAX_DEAD_TURNS)):
            await asyncio.sleep(0)
        self.ledger = Ledger.open(self._buffer)
        self.ledger.check()
        self._store = self._serve(self.ledger)

    def _serve(self, ledger: Ledger) -> LocalStore:
        return LocalStore(ledger, StorageFacts(Fingerprint(), 0, 0, self.reserve_blocks, 30.0), ManualClock())

    def _attached(self, store: LocalStore, holder_id: int) -> "MortalAttachment":
        attachment = MortalAttachment(self, holder_id, store.holding(holder_id))
        self._attachments.append(attachment)
        return attachment


class MortalAttachment:
    """The part of an `AttachmentLike` that a hold uses; nothing is ever asked back."""

    segments: dict[str, object] = {}  # noqa: RUF012 - none, of all of them

    def __init__(self, memd: MortalMemd, holder_id: int, holding: Holding) -> None:
        self.holder_id = holder_id
        self.holding = holding
        self.ended = asyncio.Event()
        self._memd = memd

    async def attach_again(self) -> "MortalAttachment":
        return self._memd.attach_again(self.holder_id)

    async def detach(self) -> None: ...
