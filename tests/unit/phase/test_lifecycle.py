import asyncio
from dataclasses import dataclass, field, replace

import pytest

from tandem.device.memory import SegmentHandle
from tandem.errors import DeviceError, FingerprintMismatchError, NotReadyError, StorageLostError
from tandem.kv.layout import KvLayout
from tandem.kv.store import Holding
from tandem.model.config import ModelConfig, WeightManifest
from tandem.phase import lifecycle
from tandem.phase.crew import Crew
from tandem.phase.door import Door
from tandem.phase.hold import Hold
from tandem.phase.lifecycle import EXIT_OK, EXIT_START_AGAIN, PhaseLife
from tandem.phase.retirement import Retirement
from tandem.phase.session import Session
from tandem.types import Block, DecodeResult, Fingerprint, PhaseCommand
from tests.support.fake_store import FakeStore


@dataclass
class StubAttachment:
    """memd's side, played by the test; the segments are not looked at here."""

    model_config: ModelConfig
    manifest: WeightManifest
    kv_layout: KvLayout
    holder_id: int = 1
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    segments: dict[str, SegmentHandle] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reclaims: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    holding: Holding = field(default_factory=lambda: Holding(frozenset(), frozenset()))
    next: "asyncio.Queue[StubAttachment | Exception]" = field(default_factory=asyncio.Queue)
    detached: bool = False

    async def attach_again(self) -> "StubAttachment":
        answer = await self.next.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def next_reclaim(self) -> int:
        return await self.reclaims.get()

    async def detach(self) -> None:
        self.detached = True


@dataclass
class StubEngine:
    """Drains when the test lets it."""

    crew: Crew
    reclaimed: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    resumed: asyncio.Queue[Holding] = field(default_factory=asyncio.Queue)
    may_drain: asyncio.Event = field(default_factory=asyncio.Event)
    drain_timeouts_s: list[float] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        self.crew.spawn(self._break())

    async def _break(self) -> None:
        await self.broken.wait()
        raise DeviceError("three steps failed")

    async def drain(self, timeout_s: float) -> None:
        self.drain_timeouts_s.append(timeout_s)
        await self.may_drain.wait()

    async def reclaim(self, num_blocks: int) -> None:
        self.reclaimed.put_nowait(num_blocks)

    def resume(self, holding: Holding) -> None:
        self.resumed.put_nowait(holding)

    def open_session(self) -> Session[DecodeResult]:
        return Session()

    def command(self, session: Session[DecodeResult], command: PhaseCommand) -> None: ...

    def close_session(self, session: Session[DecodeResult]) -> None: ...


class Stage:
    """A life and everything around it."""

    def __init__(self) -> None:
        model = ModelConfig("llama", 8, 8, 1, 1, 1, 8, 16, 64, 1e-5, 1e4)
        self.attachment = StubAttachment(model, WeightManifest("float32", 0), KvLayout(1, 1, 1, 1, 1, "float32"))
        self.memd_is_there = asyncio.Event()
        self.attach_error: Exception | None = None
        self.engines: list[StubEngine] = []
        self.serving: asyncio.Queue[bool] = asyncio.Queue()
        self.stop = asyncio.Event()
        self.retirement = Retirement()
        self.may_build = asyncio.Event()
        self.may_build.set()
        self.place_is_free = asyncio.Event()
        self.place_is_free.set()
        self.door: Door[DecodeResult] = Door()
        self.life = PhaseLife(
            self.door,
            attach=self._attach,
            build=self._build,
            take_place=self._take_place,
            set_serving=self.serving.put_nowait,
            drain_timeout_s=4.0,
            retirement=self.retirement,
        )
        self.running = asyncio.create_task(self.life.run(self.stop))

    async def _attach(self) -> Hold:
        await self.memd_is_there.wait()
        if self.attach_error is not None:
            raise self.attach_error
        return Hold(FakeStore(8), self.attachment)

    async def _build(self, hold: Hold, crew: Crew) -> StubEngine:
        assert hold.attachment is self.attachment
        await self.may_build.wait()
        self.engines.append(StubEngine(crew))
        return self.engines[-1]

    async def _take_place(self) -> None:
        await self.place_is_free.wait()

    async def until_serving(self) -> StubEngine:
        self.memd_is_there.set()
        assert await self.serving.get()
        return self.engines[-1]

    async def refuses_streams(self) -> bool:
        async def nothing() -> object:
            return
            yield

        try:
            async for _ in self.door.converse(nothing()):  # type: ignore[arg-type]
                pass
        except NotReadyError:
            return True
        return False


async def test_streams_are_refused_while_memd_is_away() -> None:
    stage = Stage()
    await asyncio.sleep(0)
    assert await stage.refuses_streams()
    assert stage.serving.empty()
    await stage.until_serving()
    assert not await stage.refuses_streams()
    stage.running.cancel()


async def test_told_to_stop_while_waiting_for_memd() -> None:
    stage = Stage()
    stage.stop.set()
    assert await stage.running == EXIT_OK
    assert stage.engines == []


async def test_told_to_stop_while_memd_that_was_attached_to_is_away_again() -> None:
    stage = Stage()
    stage.may_build.clear()  # it needs memd's answer once more
    stage.memd_is_there.set()
    await asyncio.sleep(0)
    stage.stop.set()
    assert await stage.running == EXIT_OK
    assert stage.engines == []
    assert stage.attachment.detached
    assert not stage.serving.get_nowait()


async def test_a_mismatch_is_raised() -> None:
    stage = Stage()
    stage.attach_error = FingerprintMismatchError("dtype: bfloat16 is not float32")
    stage.memd_is_there.set()
    with pytest.raises(FingerprintMismatchError):
        await stage.running


async def test_the_phase_serves_on_while_memd_is_away_and_is_told_what_it_has() -> None:
    stage = Stage()
    engine = await stage.until_serving()
    stage.attachment.ended.set()
    stage.attachment.next.put_nowait(NotReadyError("starting"))
    holding = Holding(frozenset({Block(3, 2)}), frozenset({7}))
    back = replace(stage.attachment, ended=asyncio.Event(), holding=holding)
    stage.attachment.next.put_nowait(back)
    assert await engine.resumed.get() == holding
    assert stage.serving.empty()
    assert not await stage.refuses_streams()
    back.reclaims.put_nowait(5)
    assert await engine.reclaimed.get() == 5
    stage.running.cancel()


async def test_storage_that_is_gone_ends_the_phase_with_a_status_of_its_own() -> None:
    stage = Stage()
    await stage.until_serving()
    stage.attachment.ended.set()
    stage.attachment.next.put_nowait(StorageLostError("epoch 2, not 1"))
    assert await stage.running == EXIT_START_AGAIN
    assert not await stage.serving.get()


async def test_a_drain_is_not_serving_and_ends_well() -> None:
    stage = Stage()
    engine = await stage.until_serving()
    stage.stop.set()
    assert not await stage.serving.get()
    assert await stage.refuses_streams()
    assert not stage.attachment.detached
    engine.may_drain.set()
    assert await stage.running == EXIT_OK
    assert engine.drain_timeouts_s == [4.0]
    assert stage.attachment.detached


async def test_storage_that_is_gone_under_a_drain_ends_it() -> None:
    stage = Stage()
    await stage.until_serving()
    stage.stop.set()
    await stage.serving.get()
    stage.attachment.ended.set()
    stage.attachment.next.put_nowait(StorageLostError("epoch 2, not 1"))
    assert await stage.running == EXIT_OK


async def test_a_drain_that_waits_for_memd_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HAND_BACK_S", -3.99)
    stage = Stage()
    engine = await stage.until_serving()
    stage.stop.set()
    assert await stage.running == EXIT_OK
    assert not engine.may_drain.is_set()


async def test_what_ends_the_engine_is_raised() -> None:
    stage = Stage()
    engine = await stage.until_serving()
    engine.broken.set()
    with pytest.raises(DeviceError):
        await stage.running
    assert stage.attachment.detached


async def test_reclaims_are_passed_on() -> None:
    stage = Stage()
    engine = await stage.until_serving()
    stage.attachment.reclaims.put_nowait(7)
    assert await engine.reclaimed.get() == 7
    stage.running.cancel()
