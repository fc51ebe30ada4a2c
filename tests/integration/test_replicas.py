"""Two replicas of real engines behind one gateway: who computes what, and what a client sees when one is gone."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from random import Random

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.gateway.addresses import read_replicas
from services.gateway.assembly import Gateway, World, assemble
from services.gateway.cache_feed import CacheFeed
from services.gateway.discovery import Discovery
from services.gateway.frontend import Call, Draws
from services.gateway.output import Piece
from services.gateway.replica import Replica
from services.gateway.requests import Request
from services.gateway.validation import SamplingFields
from tandem.clock import ManualClock
from tandem.config.settings import GatewayConfig
from tandem.model.config import ModelConfig
from tandem.telemetry.metrics import GatewayMetrics
from tests.support.engine_sites import EngineSite
from tests.support.gateway_fakes import read_all, tokens_of
from tests.support.gateway_world import VOCAB_SIZE, FakeTimers, byte_model
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_engines import TinyModel, tiny_engines
from tests.support.tiny_models import NUM_TOKENS, tiny_model

CONFIG = ModelConfig("llama", 64, 96, 2, 4, 2, 16, NUM_TOKENS, 512, 1e-6, 1e4)
FIRST, SECOND = "10.0.0.1:7000", "10.0.0.2:7000"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


class System:
    """A gateway whose replicas are those that a name stands for."""

    def __init__(self, sites: dict[str, EngineSite]) -> None:
        self.sites = sites
        self.clock = ManualClock(1000.0)
        self._addresses: list[str] = []
        self._opened: list[Replica] = []
        lease_ids = itertools.count(1)
        world = World(
            replicas=(),
            connect=lambda address: sites[address.name],
            opened=self._opened.append,
            metrics=GatewayMetrics.create(CollectorRegistry()),
            clock=self.clock,
            unix_ns=lambda: 7,
            timers=FakeTimers(self.clock),
            wake=lambda callback: asyncio.get_running_loop().call_soon(callback),
            draw_lease_id=lambda: next(lease_ids),
            draws=Draws(seed=lambda: 4242, request_id=lambda: f"drawn-{next(lease_ids)}"),
        )
        self.gateway: Gateway = assemble(GatewayConfig(), byte_model(), world, lambda _ready: None)
        listed = read_replicas("dns:replicas.svc:7000", "/own")
        self._discovery = Discovery(listed, self.gateway.replicas, self._resolve, 5.0)

    async def join(self, address: str) -> None:
        """One more address, which is looked up."""
        self._addresses.append(address)
        await self._discovery.look_up()
        for replica in self._opened:
            site = self.sites[replica.name]
            feed = CacheFeed(replica.name, site.cache, lambda replica=replica: replica.published.position, replica.hear)
            await site.start(replica, feed.run())
        self._opened.clear()

    async def ask(self, token_ids: Sequence[int], max_tokens: int = 48, **sampling: float) -> Request:
        fields = SamplingFields(max_tokens=max_tokens, ignore_eos=True, seed=11, **sampling)
        return await self.gateway.frontend.generate_ids(Call(sampling=fields), token_ids)

    def home(self, request: Request) -> str:
        home = self.gateway.replicas.home(request)
        assert home is not None
        return home.name

    async def hear_all(self) -> None:
        """Returns when every view is what its memd has published: memd gathers its events for a while."""
        async with asyncio.timeout(20):
            for replica in self.gateway.replicas:
                journal = self.sites[replica.name].engines.ledger.published.journal
                while replica.published.position is None or replica.published.position.number < journal.last_number:
                    await asyncio.sleep(0.005)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.gateway.replicas.check()

    async def _resolve(self, host: str) -> Sequence[str]:
        return self._addresses


@pytest.fixture
async def system() -> AsyncIterator[System]:
    theirs = tiny_model("llama", num_hidden_layers=2)
    model = TinyModel(CONFIG, pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32))
    async with tiny_engines(model) as one, tiny_engines(model) as other:
        sites = {FIRST: EngineSite(one), SECOND: EngineSite(other)}
        system = System(sites)
        await system.join("10.0.0.1")
        yield system
        for site in sites.values():
            await site.stop()


def text(count: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(3, VOCAB_SIZE) for _ in range(count)]


async def test_a_shared_prefix_is_computed_once_and_by_one_replica(system):
    system_prompt = text(128, 1)
    await read_all(await system.ask([*system_prompt, *text(9, 2)], max_tokens=4))
    await system.join("10.0.0.2")
    await system.hear_all()
    followers = [await system.ask([*system_prompt, *text(9, seed)], max_tokens=4) for seed in (3, 4)]
    assert [system.home(each) for each in followers] == [FIRST] * 2
    for follower in followers:
        assert last(await read_all(follower)).usage.num_cached_tokens >= 128
    others = text(128, 5)
    newcomer = await system.ask([*others, 3], max_tokens=4)
    assert system.home(newcomer) == SECOND, "of equals the one that was chosen longest ago"
    await read_all(newcomer)
    await system.hear_all()
    follower = await system.ask([*others, 4], max_tokens=4)
    assert system.home(follower) == SECOND
    assert last(await read_all(follower)).usage.num_cached_tokens >= 128


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9}])
async def test_streams_of_a_replica_that_is_gone_go_on_on_the_other(system, sampling):
    await system.join("10.0.0.2")
    prompts = [text(90, seed) for seed in range(4)]
    expected = [tokens_of(await read_all(await system.ask(prompt, **sampling))) for prompt in prompts]
    requests = [await system.ask(prompt, **sampling) for prompt in prompts]
    gone = system.home(requests[0])
    moved = [request for request in requests if system.home(request) == gone]
    began = [[await request.output.get() for _ in range(5)] for request in moved]
    await system.sites[gone].kill()
    system.pass_time(30.0)
    assert gone not in {system.home(request) for request in moved}
    rest = {request: await read_all(request) for request in requests}
    pieces = [[*(began[moved.index(each)] if each in moved else []), *rest[each]] for each in requests]
    assert [tokens_of(each) for each in pieces] == expected
    assert [last(each).usage.num_output_tokens for each in pieces] == [48] * 4


def last(pieces: Sequence[Piece]) -> Piece:
    assert pieces[-1].usage is not None
    return pieces[-1]
