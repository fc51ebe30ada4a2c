"""memd started anew over what the memd before left with the keeper, and what it makes of what it cannot use."""

import asyncio
import mmap
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.memd import depositing
from services.memd.daemon import Segments, Storage, load_storage
from services.memd.depositing import Custody, Depositor
from services.memd.description import Identity, differences, identity_of
from services.memd.keeping import Deposit, deposit, held_epoch, withdraw
from services.memd.loader_protocol import LoadPlan
from services.memd.resuming import open_ledger, resume_storage
from tandem.clock import ManualClock
from tandem.config.settings import KEEPER_SOCKET, MemdConfig
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.memory import ExportedSegment, MemoryExporter, SegmentKind
from tandem.errors import ConfigError, LedgerCorruptError, ModelError, NotReadyError
from tandem.kv.records import LedgerRecords
from tandem.kv.store import SequenceUpdate
from tandem.rpc.segments import ReceivedSegment
from tandem.types import Fingerprint
from tests.support.contents import key, keyed
from tests.support.fake_cuda.host import fake_driver, importers_over
from tests.support.memd import PLAN
from tests.unit.memd.test_keeper import start, wait_until_it_answers
from tests.unit.memd.test_loading import BLOCK_BYTES

TTL_S = 30.0


@pytest.fixture(scope="module")
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tdm") as name:
        process = start(Path(name) / KEEPER_SOCKET)
        wait_until_it_answers(Path(name) / KEEPER_SOCKET, process)
        yield Path(name)
        process.terminate()
        process.wait()


@pytest.fixture
def config(run_dir: Path) -> MemdConfig:
    return MemdConfig(
        model="works", run_dir=run_dir, block_size=4, kv_bytes=BLOCK_BYTES * 32, reserve_blocks=2, lease_ttl_s=TTL_S
    )


class FilledAtOnce:
    """A loader without a process."""

    async def __aenter__(self) -> "FilledAtOnce":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def plan(self) -> LoadPlan:
        return PLAN

    async def fill(self, weights: ExportedSegment, kv: ExportedSegment) -> None:
        os.pwrite(weights.fd, b"full", 0)


def fake_loader(config: MemdConfig, kind: SegmentKind) -> FilledAtOnce:
    return FilledAtOnce()


async def loaded_and_left(config: MemdConfig, clock: ManualClock, exporter: MemoryExporter | None = None) -> Storage:
    """A memd in use that has left its storage with the keeper and is seen no more."""
    storage = await load_storage(config, exporter or MemfdExporter(), clock, fake_loader)
    store = storage.store
    holder = store.attach("decode", 7, Fingerprint()).holder_id
    blocks = await store.lease_blocks(holder, 5)
    await store.acquire_sequence(holder, 100, "r", create=True)
    await store.update_sequences(holder, [SequenceUpdate(100, blocks[:2], 8, (keyed(0),))])
    leave(config, storage.segments, epoch_of(storage))
    return storage


def leave(config: MemdConfig, segments: Segments, epoch: int) -> None:
    deposit(config.run_dir / KEEPER_SOCKET, epoch, segments.all)


def epoch_of(storage: Storage) -> int:
    return storage.store.current_statistics().epoch


async def test_a_memd_goes_on_where_the_one_before_ended(config):
    clock = ManualClock(100.0)
    before = await loaded_and_left(config, clock)
    again = await resume_storage(config, clock)
    assert again is not None
    assert (epoch_of(again), again.plan, again.kv_layout) == (epoch_of(before), before.plan, before.kv_layout)
    assert again.store.facts == before.store.facts
    assert os.pread(again.segments.weights.fd, 4, 0) == b"full"
    assert (again.segments.weights.sealed, again.segments.kv.sealed) == (True, False)
    (holder,) = again.store.current_statistics().holders
    again.store.attach_again(holder.holder_id)
    holding = again.store.holding(holder.holder_id)
    assert (len(holding.spare), holding.lease_ids) == (3, {100})
    other = again.store.attach("prefill", 8, Fingerprint()).holder_id
    await again.store.acquire_sequence(other, 200, "r", create=True)
    assert len((await again.store.claim_prefix(other, 200, [key(0)])).blocks) == 1, "published contents are found"


async def test_another_release_goes_on_if_the_layout_is_the_same(config, monkeypatch):
    def identity_there(config: MemdConfig) -> Identity:
        return {**identity_of(config), "version": "of another release"}

    with monkeypatch.context() as there:
        there.setattr("services.memd.daemon.identity_of", identity_there)
        storage = await loaded_and_left(config, ManualClock(100.0))
    again = await resume_storage(config, ManualClock(100.0))
    assert again is not None
    assert epoch_of(again) == epoch_of(storage)
    monkeypatch.setattr("services.memd.description.LAYOUT", "another")
    assert await resume_storage(config, ManualClock(100.0)) is None


async def test_the_time_that_memd_was_away_ends_no_lease(config):
    clock = ManualClock(100.0)
    await loaded_and_left(config, clock)
    clock.advance(10 * TTL_S)
    again = await resume_storage(config, clock)
    (holder,) = again.store.current_statistics().holders
    again.store.attach_again(holder.holder_id)
    clock.advance(TTL_S - 1)
    assert again.store.expire() == 0
    assert again.store.holding(holder.holder_id).lease_ids == {100}, "nor has it been revoked"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kv_bytes": BLOCK_BYTES * 33}, "kv_bytes: 8192 is held, 8448 is asked for"),
        ({"quantization": "int8"}, "quantization: 'none' is held, 'int8' is asked for"),
        ({"model": "another"}, "model: 'works' is held, 'another' is asked for"),
    ],
)
async def test_other_storage_is_forgotten_and_the_reason_said(config, change, reason):
    await loaded_and_left(config, ManualClock(100.0))
    with capture_logs() as logs:
        assert await resume_storage(config.model_copy(update=change), ManualClock(100.0)) is None
    (event,) = [entry for entry in logs if entry["event"] == "storage.begun_anew"]
    assert reason in event["reason"]
    assert held_epoch(config.run_dir / KEEPER_SOCKET) == 0


@pytest.mark.parametrize("folder", [False, True])
def test_a_model_file_that_has_changed_is_another_model(config, tmp_path, folder):
    file = tmp_path / "model.safetensors"
    file.write_text("weights")
    named = config.model_copy(update={"model": str(tmp_path if folder else file)})
    before = identity_of(named)
    assert differences(before, identity_of(named)) == ""
    file.write_text("other weights")
    assert differences(before, identity_of(named)).startswith("files: ")


def test_a_link_to_nothing_beside_the_model_hides_no_change(config, tmp_path):
    (tmp_path / "other.json").symlink_to(tmp_path / "nothing")
    file = tmp_path / "model.safetensors"
    file.write_text("weights")
    named = config.model_copy(update={"model": str(tmp_path)})
    before = identity_of(named)
    file.write_text("other weights")
    assert differences(before, identity_of(named)).startswith("files: ")


@pytest.mark.parametrize("changes", [True, False])
async def test_a_model_whose_files_change_while_they_are_read_is_refused(config, tmp_path, changes):
    file = tmp_path / "model.gguf"
    file.write_text("a model")
    named = config.model_copy(update={"model": str(file)})

    class Slow(FilledAtOnce):
        async def fill(self, weights: ExportedSegment, kv: ExportedSegment) -> None:
            await super().fill(weights, kv)
            if changes:
                file.write_text("a later model")

    loading = load_storage(named, MemfdExporter(), ManualClock(100.0), lambda *_: Slow())
    if changes:
        with pytest.raises(ModelError, match=f"{file}: changed while it was read"):
            await loading
    else:
        await loading


async def test_a_ledger_that_contradicts_itself_is_begun_anew(config):
    storage = await loaded_and_left(config, ManualClock(100.0))
    ledger = storage.segments.ledger
    with mmap.mmap(ledger.fd, ledger.size_bytes) as buffer:
        records = LedgerRecords.map(buffer)
        records.blocks["state"][31] = 9
        del records
        with suppress(BufferError):
            buffer.close()
    with capture_logs() as logs:
        assert await resume_storage(config, ManualClock(100.0)) is None
    assert any("LedgerCorruptError: block 31 is in state 9" in entry.get("reason", "") for entry in logs)


@pytest.mark.parametrize("table", ["header", "holders", "blocks", "leases", "references"])
async def test_whatever_bytes_of_a_ledger_are_damaged_it_is_opened_or_refused(config, table):
    storage = await loaded_and_left(config, ManualClock(100.0))
    whole = os.pread(storage.segments.ledger.fd, storage.segments.ledger.size_bytes, 0)
    chance = random.Random(table)
    for _ in range(60):
        copy = MemfdExporter().create("ledger", len(whole))
        os.pwrite(copy.fd, whole, 0)
        with mmap.mmap(copy.fd, copy.size_bytes) as buffer:
            records = getattr(LedgerRecords.map(buffer), table).view("u1").reshape(-1)
            records[chance.sample(range(min(len(records), 400)), 3)] = chance.randrange(256)
            del records
        with suppress(LedgerCorruptError):
            open_ledger(copy, epoch_of(storage), storage.kv_layout).check()
        copy.close()


async def test_what_is_held_but_no_storage_is_begun_anew(config):
    segment = MemfdExporter().create("weights", 4096)
    deposit(config.run_dir / KEEPER_SOCKET, 9, [segment])
    with capture_logs() as logs:
        assert await resume_storage(config, ManualClock(100.0)) is None
    assert any("the keeper holds no kv, but weights" in entry.get("reason", "") for entry in logs)
    assert held_epoch(config.run_dir / KEEPER_SOCKET) == 0


async def test_with_no_keeper_or_an_empty_one_memd_begins_anew(config, tmp_path):
    alone = config.model_copy(update={"run_dir": tmp_path})
    with capture_logs() as logs:
        assert await resume_storage(alone, ManualClock(100.0)) is None
        assert await resume_storage(config, ManualClock(100.0)) is None
    reasons = [entry["reason"] for entry in logs if entry["event"] == "storage.begun_anew"]
    assert "there is no keeper" in reasons[0]
    assert reasons[1] == "the keeper holds nothing"


async def test_a_reserve_of_everything_is_refused_here_too(config):
    await loaded_and_left(config, ManualClock(100.0))
    with pytest.raises(ConfigError, match=r"memd\.reserve_blocks: 32 of 32"):
        await resume_storage(config.model_copy(update={"reserve_blocks": 32}), ManualClock(100.0))


async def test_a_keeper_that_is_slow_is_asked_again(config, monkeypatch):
    clock = ManualClock(100.0)
    before = await loaded_and_left(config, clock)
    answers = [NotReadyError("slow"), NotReadyError("slow")]

    def slow(path: Path) -> Deposit:
        if answers:
            raise answers.pop()
        return withdraw(path)

    monkeypatch.setattr("services.memd.resuming.withdraw", slow)
    again = await resume_storage(config, clock)
    assert epoch_of(again) == epoch_of(before)


async def test_device_memory_is_handed_on_by_its_descriptors(config):
    """Over a fake driver: what a phase maps of the second memd's segments is what it mapped of the first's."""
    driver, clock = fake_driver(), ManualClock(100.0)
    segments = [VmmExporter(driver).create(name, 2 << 20) for name in ("weights", "kv")]
    host = await loaded_and_left(config, clock)
    mixed = Segments(*segments, host.segments.ledger, host.segments.description)
    leave(config, mixed, epoch_of(host))
    again = await resume_storage(config, clock)
    assert again.segments.kv.kind is SegmentKind.CUDA_VMM
    importer = importers_over(driver)[SegmentKind.CUDA_VMM]()
    mapped = importer.map(segments[1], writable=True)
    mapped.tensor("int32", (1,))[0] = 41
    handed_on = importer.map(again.segments.kv, writable=True)
    assert handed_on.tensor("int32", (1,)).tolist() == [41]


async def test_the_depositor_finds_a_keeper_that_starts_later_or_anew(config, tmp_path, monkeypatch):
    monkeypatch.setattr(depositing, "LOOK_S", 0.01)
    storage = await load_storage(config, MemfdExporter(), ManualClock(1.0), fake_loader)
    path = Path(tempfile.mkdtemp(prefix="tdm")) / KEEPER_SOCKET
    depositor = Depositor(path, epoch_of(storage), storage.segments.all)
    running = asyncio.create_task(depositor.run())
    await until(lambda: depositor.custody is Custody.ALONE)
    for _ in range(2):
        keeper = start(path)
        await until(lambda: depositor.custody is Custody.KEPT)
        assert held_epoch(path) == epoch_of(storage)
        keeper.kill()
        keeper.wait()
        await until(lambda: depositor.custody is Custody.ALONE)
    running.cancel()


async def test_memory_that_ends_with_memd_is_not_deposited(config):
    kv = ReceivedSegment("kv", fd=-1, size_bytes=1, kind=SegmentKind.CUDA_IPC, sealed=False)
    depositor = Depositor(config.run_dir / KEEPER_SOCKET, 3, [kv])
    with capture_logs() as logs:
        await asyncio.wait_for(depositor.run(), 30)
    assert depositor.custody is Custody.TIED
    assert [entry["custody"] for entry in logs if entry["event"] == "storage.not_kept"] == ["tied"]


async def until(holds) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)
