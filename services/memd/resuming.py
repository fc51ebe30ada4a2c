"""memd that goes on with the storage of the memd before it: nothing is loaded, and no holder loses anything."""

import asyncio
import mmap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import structlog

from services.memd.daemon import HANDLE_SOCKET, Segments, Storage, check_reserve, facts_of
from services.memd.description import Identity, differences, identity_of, read_description
from services.memd.keeper import NO_EPOCH
from services.memd.keeping import Deposit, forget, withdraw
from services.memd.store import LocalStore
from tandem.clock import Clock
from tandem.config.settings import KEEPER_SOCKET, MemdConfig
from tandem.device.memory import SegmentHandle
from tandem.errors import (
    DeviceError,
    FingerprintMismatchError,
    LedgerCorruptError,
    NotFoundError,
    NotReadyError,
    StorageError,
)
from tandem.kv.layout import KvLayout
from tandem.kv.ledger import Ledger
from tandem.rpc.segments import ReceivedSegment, close_segments

NUM_PATIENT_TRIES = 4

_log = structlog.get_logger()


async def resume_storage(config: MemdConfig, clock: Clock) -> Storage | None:
    """What the keeper holds, if it is what `config` asks for; None, with the reason in the log, when memd must load.

    What will not be used is forgotten before anything else takes memory. ConfigError for a ``memd.reserve_blocks`` that
    leaves none to prompts.
    """
    path = config.run_dir / KEEPER_SOCKET
    identity = identity_of(config)
    try:
        held = await _withdraw(path)
    except (NotFoundError, NotReadyError, DeviceError) as error:
        _log.info("storage.begun_anew", reason=str(error))
        return None
    if held.epoch == NO_EPOCH:
        _log.info("storage.begun_anew", reason="the keeper holds nothing")
        return None
    try:
        return _resume(config, held, identity, clock)
    except (StorageError, DeviceError) as error:
        _log.warning("storage.begun_anew", reason=f"{type(error).__name__}: {error}")
        await asyncio.to_thread(_let_go, path, held)
        return None


async def _withdraw(path: Path) -> Deposit:
    """A keeper that is there may be slow: what it holds is worth a wait. As `withdraw`."""
    for _ in range(NUM_PATIENT_TRIES):
        try:
            return await asyncio.to_thread(withdraw, path)
        except NotReadyError as error:
            _log.warning("keeper.slow", error=str(error))
    return await asyncio.to_thread(withdraw, path)


def _resume(config: MemdConfig, held: Deposit, identity: Identity, clock: Clock) -> Storage:
    """FingerprintMismatchError, LedgerCorruptError, DeviceError: it cannot be gone on with."""
    started_s = clock.now()
    segments = _segments(held.segments)
    description = read_description(segments.description)
    if difference := differences(description.identity, identity):
        raise FingerprintMismatchError(difference)
    check_reserve(config, description.kv_layout)
    ledger = open_ledger(segments.ledger, held.epoch, description.kv_layout)
    ledger.renew_all(clock.now())
    store = LocalStore(ledger, facts_of(config, description, segments), clock)
    counted = ledger.statistics()
    _log.info(
        "storage.resumed",
        model=description.plan.model_name,
        epoch=held.epoch,
        num_holders=len(counted.holders),
        num_sequences=counted.num_sequences,
        num_cached_blocks=counted.num_cached_blocks,
        repairs=asdict(ledger.repairs),
        resume_s=round(clock.now() - started_s, 3),
    )
    return Storage(segments, store, description.plan, description.kv_layout, config.run_dir.absolute() / HANDLE_SOCKET)


def open_ledger(segment: SegmentHandle, epoch: int, layout: KvLayout) -> Ledger:
    """Repaired and checked. LedgerCorruptError: it is damaged, or not the ledger of that KV."""
    ledger = Ledger.open(mmap.mmap(segment.fd, segment.size_bytes))
    counted = ledger.statistics()
    actual = (counted.epoch, counted.num_blocks, ledger.block_size)
    if actual != (epoch, layout.num_blocks, layout.block_size):
        raise LedgerCorruptError(f"a ledger of epoch, blocks, block size {actual} beside KV of {layout}")
    return ledger


def _segments(held: Mapping[str, ReceivedSegment]) -> Segments:
    return Segments(*(_segment(held, name) for name in ("weights", "kv", "ledger", "description")))


def _segment(held: Mapping[str, ReceivedSegment], name: str) -> ReceivedSegment:
    if name not in held:
        raise DeviceError(f"the keeper holds no {name}, but {', '.join(sorted(held))}")
    return held[name]


def _let_go(path: Path, held: Deposit) -> None:
    close_segments(held.segments.values())
    try:
        forget(path, held.epoch)
    except (NotFoundError, NotReadyError) as error:
        _log.warning("storage.not_forgotten", epoch=held.epoch, error=str(error))
