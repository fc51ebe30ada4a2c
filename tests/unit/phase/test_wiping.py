"""Prefill over real memory and memd's own store: what another domain's KV was in is zero before a lease uses it."""

import asyncio
import mmap
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

import pytest
import torch

from services.memd.store import LocalStore, StorageFacts
from services.prefill.engine import PrefillEngine
from tandem.clock import ManualClock
from tandem.device.cpu.memory import MemfdExporter, MemfdImporter
from tandem.kv.ledger import Ledger
from tandem.kv.occupants import domain_in
from tandem.kv.records import ledger_bytes
from tandem.kv.store import SequenceUpdate
from tandem.model.config import ModelConfig
from tandem.phase.crew import Crew
from tandem.types import Fingerprint, Phase, SamplingSpec, SequenceSpec, StopSpec, Submit
from tests.support.contents import prompts_of
from tests.support.paged_decoder import one_thread, pack_weights
from tests.support.tiny_engines import BLOCK_SIZE, TinyModel, outfit_of, start_steps
from tests.support.tiny_models import NUM_TOKENS, tiny_model

NUM_LAYERS, NUM_BLOCKS = 2, 6
CONFIG = ModelConfig("llama", 64, 96, NUM_LAYERS, 4, 2, 16, NUM_TOKENS, 512, 1e-6, 1e4)
SHAPE = (NUM_LAYERS, 2, NUM_BLOCKS, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)
A, B = prompts_of("private:a"), prompts_of("private:b")
WHOLE, SHORT = NUM_BLOCKS * BLOCK_SIZE, BLOCK_SIZE + 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model() -> TinyModel:
    theirs = tiny_model("llama", num_hidden_layers=NUM_LAYERS)
    return TinyModel(CONFIG, pack_weights(CONFIG, theirs.state_dict().__getitem__, torch.float32))


def facts(*, wipes: bool) -> StorageFacts:
    return StorageFacts(Fingerprint(), 0, 0, 0, 30.0, wipe_between_tenants=wipes)


@dataclass
class Machine:
    """A pool that one prompt can fill, and the phase that works on it."""

    model: TinyModel
    kv_cache: torch.Tensor
    ledger_bytes: mmap.mmap
    store: LocalStore
    crew: Crew = field(default_factory=Crew)
    num_leases: int = 0

    def start_phase(self) -> None:
        self.crew = Crew()
        outfit = outfit_of(Phase.PREFILL, self.store, self.crew, start_steps(self.model, self.kv_cache, self.crew))
        self.holder_id = outfit.holder_id
        self.engine = PrefillEngine(outfit, lambda: WHOLE)
        self.engine.start()

    async def kill_phase(self) -> None:
        await self.crew.cancel()
        self.store.leave(self.holder_id)

    async def restart(self, *, wipes: bool = True) -> None:
        """memd, over the same ledger, and the phase."""
        await self.kill_phase()
        self.store = LocalStore(Ledger.open(self.ledger_bytes), facts(wipes=wipes), ManualClock())
        self.start_phase()

    async def prefill(self, namespace: bytes, num_tokens: int, lease_id: int = 0, domain: bytes = b"") -> list[int]:
        """The blocks of a lease whose prompt has been computed."""
        self.num_leases = lease_id or self.num_leases + 1
        session, lease_id = self.engine.open_session(), self.num_leases
        token_ids = tuple(Random(lease_id).choices(range(3, NUM_TOKENS), k=num_tokens))
        sampling, stop = SamplingSpec(temperature=0.0), StopSpec(1)
        spec = SequenceSpec(lease_id, "r", token_ids, num_tokens, sampling, stop, 0, lease_id, namespace, domain=domain)
        self.engine.command(session, Submit(spec))
        async with asyncio.timeout(30), aclosing(session.results()) as results:
            result = await anext(results)
        assert [prefilled.output.lease_id for prefilled in result.prefilled] == [lease_id]
        lease = await self.store.acquire_sequence(self.holder_id, lease_id, "r", create=False)
        assert lease.num_sealed_tokens == num_tokens
        return [block.block_id for block in lease.blocks]

    async def end(self) -> None:
        """The last lease is released."""
        await self.store.release_sequences([self.num_leases])

    def behind(self, block_ids: list[int], num_tokens: int) -> torch.Tensor:
        """What lies in a lease's last block behind its tokens."""
        return self.kv_cache[:, :, block_ids[-1], num_tokens % BLOCK_SIZE :]


@pytest.fixture
async def machine(model: TinyModel) -> AsyncIterator[Machine]:
    segment = MemfdExporter().create("kv", torch.zeros(SHAPE).nbytes)
    kv_cache = MemfdImporter().map(segment, writable=True).tensor("float32", SHAPE)
    buffer = mmap.mmap(-1, ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
    ledger = Ledger.create(buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=1)
    machine = Machine(model, kv_cache, buffer, LocalStore(ledger, facts(wipes=True), ManualClock()))
    machine.start_phase()
    yield machine
    await machine.crew.cancel()
    segment.close()


async def fill_as_a(machine: Machine) -> None:
    """Every block has KV of A, and is in no lease."""
    await machine.prefill(A, WHOLE)
    await machine.end()
    assert all(block.any() for block in machine.kv_cache.transpose(0, 2))


@pytest.mark.parametrize("restarts", [False, True])
async def test_another_domains_kv_is_gone(machine: Machine, restarts: bool) -> None:
    await fill_as_a(machine)
    if restarts:
        await machine.restart()
    blocks = await machine.prefill(B, SHORT)
    assert len(blocks) == 2
    assert machine.kv_cache[:, :, blocks[0]].all(), "its own is there"
    assert not machine.behind(blocks, SHORT).any()


async def test_in_its_own_domain_nothing_is_wiped(machine: Machine) -> None:
    await fill_as_a(machine)
    before = machine.kv_cache.clone()
    blocks = await machine.prefill(A, SHORT)
    assert machine.behind(blocks, SHORT).all()
    assert torch.equal(machine.behind(blocks, SHORT), before[:, :, blocks[-1], SHORT % BLOCK_SIZE :])


@pytest.mark.parametrize(
    ("first", "second", "is_wiped"),
    [
        (domain_in(A), domain_in(A), False),
        (domain_in(A), domain_in(B), True),
        (b"", b"", True),
        (domain_in(A), b"", True),
    ],
    ids=["one domain", "two domains", "nobodys", "then nobodys"],
)
async def test_what_shares_with_nobody_is_wiped_for_others_than_its_domain(
    machine: Machine, first: bytes, second: bytes, is_wiped: bool
) -> None:
    await machine.prefill(b"", WHOLE, domain=first)
    await machine.end()
    blocks = await machine.prefill(b"", SHORT, domain=second)
    assert machine.behind(blocks, SHORT).any() != is_wiped


async def test_what_is_kept_and_what_is_not_is_of_one_domain(machine: Machine) -> None:
    await fill_as_a(machine)
    assert machine.behind(await machine.prefill(b"", SHORT, domain=domain_in(A)), SHORT).all()


async def test_where_it_is_not_asked_for_nothing_is_wiped(machine: Machine) -> None:
    await machine.restart(wipes=False)
    await fill_as_a(machine)
    assert machine.behind(await machine.prefill(B, SHORT), SHORT).all()


async def die_before_the_wipe(machine: Machine) -> int:
    """A phase has told memd which blocks a lease of B gets, and not run the step that wipes them; the lease's id."""
    await machine.kill_phase()
    holder = machine.store.attach(Phase.DECODE, 1, Fingerprint())
    await machine.store.acquire_sequence(holder.holder_id, 50, "r", create=True, domain=domain_in(B))
    blocks = await machine.store.lease_blocks(holder.holder_id, NUM_BLOCKS)
    assert len(blocks) == NUM_BLOCKS
    await machine.store.update_sequences(holder.holder_id, [SequenceUpdate(50, blocks, 0)])
    machine.store.detach(holder)
    machine.start_phase()
    return 50


async def test_the_successors_lease_is_wiped(machine: Machine) -> None:
    await fill_as_a(machine)
    await machine.store.release_sequences([await die_before_the_wipe(machine)])
    assert not machine.behind(await machine.prefill(B, SHORT), SHORT).any()


async def test_the_same_lease_is_wiped_by_the_successor(machine: Machine) -> None:
    await fill_as_a(machine)
    blocks = await machine.prefill(B, SHORT, lease_id=await die_before_the_wipe(machine))
    assert len(blocks) == NUM_BLOCKS
    assert not machine.kv_cache[:, :, blocks[2:]].any()
    assert not machine.behind(blocks[:2], SHORT).any()
