"""Who the replicas are, asked again and again: the list of the configuration, and what names stand for now."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import structlog

from services.gateway.addresses import DnsEntry, ReplicaAddress, ReplicaList

CHECK_S = 1.0
LOOKUP_TIMEOUT_S = 2.0  # the set is looked at only when it has ended

Resolver = Callable[[str], Awaitable[Iterable[str]]]
"""The addresses of a host. OSError: that is not known now."""

_log = structlog.get_logger()


class Replicas(Protocol):
    """The part of the set of replicas that is told."""

    def follow(self, addresses: Sequence[ReplicaAddress]) -> None:
        """These are the replicas from now on."""
        ...

    def check(self) -> None:
        """Time has passed."""
        ...


class Discovery:
    """What a lookup that fails would have said is taken to be what the last one said."""

    def __init__(self, listed: ReplicaList, replicas: Replicas, resolve: Resolver, interval_s: float) -> None:
        """`interval_s`: between two lookups of a name."""
        self._listed = listed
        self._replicas = replicas
        self._resolve = resolve
        self._interval_s = interval_s
        self._found: dict[DnsEntry, tuple[ReplicaAddress, ...]] = {}

    async def run(self) -> None:
        """For ever: looks names up, and has the set look at itself in between."""
        looked = -self._interval_s
        loop = asyncio.get_running_loop()
        while True:
            if self._listed.by_name and loop.time() - looked >= self._interval_s:
                looked = loop.time()
                await self.look_up()
            self._replicas.check()
            await asyncio.sleep(min(CHECK_S, self._interval_s))

    async def look_up(self) -> None:
        """Asks for every name, once, and tells the set."""
        for entry in self._listed.by_name:
            await self._look_up(entry)
        found = [address for entry in self._listed.by_name for address in self._found.get(entry, ())]
        self._replicas.follow((*self._listed.fixed, *found))

    async def _look_up(self, entry: DnsEntry) -> None:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                addresses = await self._resolve(entry.host)
        except OSError as error:
            _log.warning("replica.lookup_failed", host=entry.host, reason=str(error))
        else:
            self._found[entry] = tuple(map(entry.at, sorted(set(addresses))))


async def look_up(host: str) -> list[str]:
    """By the machine's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
