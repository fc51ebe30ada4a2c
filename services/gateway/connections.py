"""The connections to replicas, and the tasks that work for each, from its opening to its end."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import grpc

from services.gateway.addresses import ReplicaAddress
from services.gateway.cache_feed import CacheFeed
from services.gateway.replica import Replica
from tandem.errors import TandemError
from tandem.rpc.cache_client import CacheClient
from tandem.rpc.cancelling import end_tasks
from tandem.rpc.controller_client import ObservationSender
from tandem.rpc.memd_client import MemdClient
from tandem.rpc.phase_client import PhaseClient
from tandem.types import Phase

FINAL_RELEASE_S = 2.0  # for memd to hear of the last leases; their time to live ends them otherwise


class Connections:
    """To one replica's services. `Links`, made on the running loop; used from `start` on."""

    def __init__(self, address: ReplicaAddress, credentials: grpc.ChannelCredentials | None) -> None:
        """`credentials` are for TCP; None: plain text."""
        self.phases = {
            Phase.PREFILL: PhaseClient(Phase.PREFILL, address.prefill, credentials),
            Phase.DECODE: PhaseClient(Phase.DECODE, address.decode, credentials),
        }
        self.store = MemdClient(address.memd, credentials)
        self.cache = CacheClient(address.memd, credentials)
        self.observations = ObservationSender(address.controller, credentials)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, replica: Replica) -> None:
        """Connects, and works for the replica until `close`."""
        await self.observations.start()
        for client in self.phases.values():
            client.start(replica.orchestrator)
        self._spawn(replica.pool.run())
        self._spawn(replica.leases.run_releases())
        self._spawn(replica.leases.run_renewals(replica.pool.lease_ttl_s))
        feed = CacheFeed(replica.name, self.cache, lambda: replica.published.position, replica.hear)
        self._spawn(feed.run())

    async def close(self) -> None:
        """Ends every link; also before a start."""
        await end_tasks(*self._tasks)
        for client in self.phases.values():
            await client.close()
        await self.observations.close()
        await self.cache.close()
        await self.store.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))


class RunningReplicas:
    """Every replica that has been opened and not been closed, with its connections."""

    def __init__(self, credentials: grpc.ChannelCredentials | None) -> None:
        self._credentials = credentials
        self._started = False
        self._open: dict[Replica, Connections] = {}
        self._changes: set[asyncio.Task[None]] = set()  # starts and ends under way

    def connect(self, address: ReplicaAddress) -> Connections:
        """For a replica that is about to be opened."""
        return Connections(address, self._credentials)

    def opened(self, replica: Replica) -> None:
        """It is connected, now or by `start`."""
        assert isinstance(replica.links, Connections)
        self._open[replica] = replica.links
        if self._started:
            self._spawn(replica.links.start(replica))

    def closed(self, replica: Replica) -> None:
        """Nothing more is asked of it."""
        self._spawn(self._end(replica, self._open.pop(replica)))

    async def start(self) -> None:
        """Connects those that have been opened, and from now on each at once."""
        self._started = True
        for replica, connections in self._open.items():
            await connections.start(replica)

    async def flush(self) -> None:
        """Tells every memd that listens of the leases that have ended."""
        await asyncio.gather(*(_flush(replica) for replica in self._open))

    async def stop(self) -> None:
        """Ends everything; also after a start that failed."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        for connections in self._open.values():
            await connections.close()

    async def _end(self, replica: Replica, connections: Connections) -> None:
        await _flush(replica)
        await connections.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)


async def _flush(replica: Replica) -> None:
    with suppress(TandemError, TimeoutError):
        async with asyncio.timeout(FINAL_RELEASE_S):
            await replica.leases.flush()
