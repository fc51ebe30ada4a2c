"""Replicas made of real engines over memd's own store, in this process, as a gateway's links reach them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from services.gateway.replica import Replica
from tandem.errors import NotReadyError
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.store import StorageStatistics
from tandem.rpc.phase_client import PhaseListener, ended_lease_ids
from tandem.types import AbortSequence, Fingerprint, Phase, SequenceSpec, Submit
from tests.support.gateway_world import Observations
from tests.support.tiny_engines import BLOCK_SIZE, NUM_BLOCKS, TinyEngines


class EnginePort:
    """A `PhasePort` whose stream is an engine's session."""

    def __init__(self, phase: Phase, engine: Any) -> None:
        self.connected = False
        self._phase = phase
        self._engine = engine
        self._in_flight: set[int] = set()

    def start(self, listener: PhaseListener) -> None:
        """The stream begins."""
        self._listener, self._session = listener, self._engine.open_session()
        self.connected = True
        self._reading = asyncio.create_task(self._read())
        listener.phase_connected(self._phase)

    async def kill(self) -> None:
        """The stream breaks, with whatever was on its way."""
        self.connected = False
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._engine.close_session(self._session)
        self._listener.phase_lost(self._phase, frozenset(self._in_flight))

    def submit(self, sequence: SequenceSpec) -> None:
        self._in_flight.add(sequence.lease_id)
        self._engine.command(self._session, Submit(sequence))

    def abort(self, lease_id: int) -> None:
        self._engine.command(self._session, AbortSequence(lease_id))

    async def _read(self) -> None:
        async for result in self._session.results():
            self._in_flight.difference_update(ended_lease_ids(result))
            self._listener.phase_result(result)


class Reach:
    """memd's store and cache, while it can be reached."""

    def __init__(self, engines: TinyEngines) -> None:
        self.away = False
        self._store = engines.store

    async def statistics(self) -> StorageStatistics:
        self._check()
        fingerprint = Fingerprint("tiny", "float32", "float32", block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)
        return replace(await self._store.statistics(), fingerprint=fingerprint)

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        self._check()
        return await self._store.fork_sequence(parent_lease_id, child_lease_id, request_id, num_tokens)

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        self._check()
        return await self._store.release_sequences(lease_ids)

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        self._check()
        await self._store.abandon_sequences(lease_ids)

    async def watch(self, after: CachePosition | None) -> AsyncGenerator[CacheNews, None]:
        self._check()
        async for news in self._store.cache.watch(after):
            self._check()
            yield news

    def _check(self) -> None:
        if self.away:
            raise NotReadyError("memd is away")


class EngineSite:
    """`Links` to one replica."""

    def __init__(self, engines: TinyEngines) -> None:
        self.engines = engines
        self.observations = Observations()
        self.phases = {
            Phase.PREFILL: EnginePort(Phase.PREFILL, engines.prefill),
            Phase.DECODE: EnginePort(Phase.DECODE, engines.decode),
        }
        self.reach = Reach(engines)
        self.store: Any = self.reach
        self.cache: Any = self.reach
        self._replica: Replica | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, replica: Replica, *work: Any) -> None:
        """Connects it; `work` runs until the end."""
        self._replica = replica
        self._tasks = [asyncio.create_task(each) for each in (replica.leases.run_releases(), *work)]
        await replica.pool.poll()
        for port in self.phases.values():
            port.start(replica.orchestrator)

    async def kill(self) -> None:
        """Nothing of it answers any more."""
        assert self._replica is not None
        self.reach.away = True
        await self._replica.pool.poll()
        for port in self.phases.values():
            await port.kill()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
