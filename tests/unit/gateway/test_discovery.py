"""Which replicas there are: the list, names that are looked up, and what their memd tells of its cache."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from services.gateway.addresses import ReplicaAddress, in_directory, on_network, read_replicas
from services.gateway.cache_feed import FIRST_DELAY_S, LAST_DELAY_S, CacheFeed
from services.gateway.discovery import Discovery
from tandem.errors import ConfigError, NotReadyError
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.journal import BlockStored, CacheCleared
from tandem.routing.published import PublishedBlocks
from tests.support.gateway_sites import Sites

TEXT = "the same beginning of many a prompt, " * 5


def test_the_list_is_directories_and_addresses():
    listed = read_replicas(" /run/a/, node-1:7000,[::1]:7000, dns:replicas.svc:7100 ", "/own")
    assert [each.name for each in listed.fixed] == ["/run/a", "node-1:7000", "[::1]:7000"]
    assert listed.fixed[0].decode == "unix:/run/a/decode.sock"
    first = listed.fixed[1]
    assert (first.memd, first.prefill, first.decode, first.controller) == (
        "node-1:7000",
        "node-1:7001",
        "node-1:7002",
        "node-1:7003",
    )
    (entry,) = listed.by_name
    assert (entry.at("10.0.0.7").memd, entry.at("fd00::7").decode) == ("10.0.0.7:7100", "[fd00::7]:7102")


def test_nothing_listed_is_the_one_of_the_run_directory():
    listed = read_replicas("", "/own")
    assert listed.fixed == (in_directory("/own"),)
    assert listed.by_name == ()


@pytest.mark.parametrize(
    "text", ["relative/path", "host", "host:0", "host:65533", "dns:host", "dns:a..b:7000", ":7000", "/a,b:1,/a"]
)
def test_a_wrong_entry_is_named(text):
    with pytest.raises(ConfigError, match=r"gateway\.replicas: '"):
        read_replicas(text, "/own")


class Names:
    """A resolver that says what it is told to."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] | None = addresses

    async def __call__(self, host: str) -> Sequence[str]:
        assert host == "replicas.svc"
        if self.addresses is None:
            raise OSError("the name server is away")
        return self.addresses


async def test_who_a_name_stands_for_joins_and_leaves():
    names, sites = Names("10.0.0.1"), Sites(names=())
    discovery = Discovery(read_replicas("dns:replicas.svc:7000", "/own"), sites.gateway.replicas, names, 5.0)
    await discovery.look_up()
    await sites["10.0.0.1:7000"].up()
    assert sites.readiness == [True]
    busy = [await sites.request(TEXT + str(number)) for number in range(2)]
    names.addresses = ("10.0.0.2", "10.0.0.1", "10.0.0.2")
    await discovery.look_up()
    await sites["10.0.0.2:7000"].up()
    assert sites.where(await sites.request("somebody else's text, which is long enough" * 2)).name == "10.0.0.2:7000"
    names.addresses = None
    await discovery.look_up()
    assert len(sites.gateway.replicas.serving) == 2, "a lookup that fails says nothing"
    names.addresses = ("10.0.0.2",)
    await discovery.look_up()
    assert [each.name for each in sites.gateway.replicas.serving] == ["10.0.0.2:7000"]
    assert [sites.where(request).name for request in busy] == ["10.0.0.1:7000"] * 2


async def test_the_fixed_ones_stay_beside_those_of_a_name():
    told: list[list[str]] = []

    class Set:
        def follow(self, addresses: Sequence[ReplicaAddress]) -> None:
            told.append([each.name for each in addresses])

        def check(self) -> None: ...

    names = Names("10.0.0.1")
    names.addresses = None
    discovery = Discovery(read_replicas("/a,dns:replicas.svc:7000", "/own"), Set(), names, 5.0)
    await discovery.look_up()
    names.addresses = ("10.0.0.1",)
    await discovery.look_up()
    assert told == [["/a"], ["/a", on_network("10.0.0.1", 7000).name]]


class Cache:
    """memd's stream, a script: a list of news is told, an error ends the watch."""

    def __init__(self, *script: list[CacheNews] | NotReadyError) -> None:
        self.asked: list[CachePosition | None] = []
        self._script = list(script)

    async def watch(self, after: CachePosition | None) -> AsyncGenerator[CacheNews, None]:
        self.asked.append(after)
        step = self._script.pop(0)
        if isinstance(step, NotReadyError):
            raise step
        for news in step:
            yield news


async def fed(cache: Cache, num_pauses: int) -> tuple[PublishedBlocks, list[float]]:
    """Runs until the feed has paused so often."""
    blocks, pauses = PublishedBlocks(lambda: 100), list[float]()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == num_pauses:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await CacheFeed("/a", cast("Any", cache), lambda: blocks.position, blocks.hear, pause).run()
    return blocks, pauses


def stored(key: bytes, position: CachePosition | None) -> CacheNews:
    return CacheNews((BlockStored(b"", b"", key),), position, 16)


async def test_the_feed_goes_on_where_it_was():
    away = NotReadyError("away")
    cleared = CacheNews((CacheCleared(),), None, 16)
    cache = Cache(
        [cleared, stored(b"1", None), stored(b"2", CachePosition(7, 2))],
        away,
        [stored(b"3", CachePosition(7, 3))],
        [cleared, stored(b"4", CachePosition(8, 1))],
    )
    blocks, _ = await fed(cache, 4)
    assert cache.asked == [None, CachePosition(7, 2), CachePosition(7, 2), CachePosition(7, 3)]
    assert [key in blocks.keys for key in (b"1", b"2", b"3", b"4")] == [False, False, False, True]


async def test_a_stream_that_broke_while_it_told_everything_is_asked_for_everything_again():
    cache = Cache([CacheNews((CacheCleared(),), None, 16), stored(b"1", None)], NotReadyError("away"))
    await fed(cache, 2)
    assert cache.asked == [None, None]


async def test_the_feed_asks_less_and_less_often_while_memd_is_away():
    away = NotReadyError("away")
    _, pauses = await fed(Cache(away, away, away, away, away, away, [stored(b"1", CachePosition(7, 1))], away), 8)
    assert pauses[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert pauses[5] == LAST_DELAY_S
    assert pauses[6] == FIRST_DELAY_S, "it was there"
