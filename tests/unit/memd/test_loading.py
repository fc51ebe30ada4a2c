"""However the loader ends, memd knows why, and no process is left."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.memd.daemon import load_storage, plan_kv
from services.memd.load import choose_dtype, cpu_flags
from services.memd.loader_protocol import decode, decode_plan, encode_plan
from services.memd.loading import Loader
from services.memd.main import load_unless_stopped
from tandem.clock import MonotonicClock
from tandem.config.settings import MemdConfig
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.memory import SegmentKind
from tandem.errors import ConfigError, DeviceError, ModelError, UnsupportedModelError
from tests.support.memd import MANIFEST, PLAN

ROOT = Path(__file__).parents[3]
BLOCK_BYTES = 2 * 2 * 1 * 8 * 2 * 4  # layers, keys and values, heads, head_dim, bytes, tokens


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def config(model: str, **values: object) -> MemdConfig:
    return MemdConfig(model=model, block_size=4, kv_bytes=BLOCK_BYTES * 32, **{"reserve_blocks": 2, **values})


def fake_loader(settings: MemdConfig, kind: SegmentKind) -> Loader:
    return Loader(settings, kind, module="tests.support.fake_loader")


async def load(settings: MemdConfig, available_bytes: int = 1 << 30):
    return await load_storage(settings, MemfdExporter(lambda: available_bytes), MonotonicClock(), fake_loader)


async def test_a_loaded_model_is_storage():
    storage = await load(config("works"))
    facts = storage.store.facts
    assert os.pread(storage.segments.weights.fd, 4, 0) == b"full"
    assert (facts.weight_bytes, facts.kv_bytes) == (4096, BLOCK_BYTES * 32)
    assert (facts.fingerprint.model_digest, facts.fingerprint.num_blocks) == ("digest", 32)
    assert (facts.fingerprint.dtype, facts.fingerprint.kv_dtype) == ("bfloat16", "bfloat16")
    assert storage.store.current_statistics().num_free_blocks == 32
    with pytest.raises(PermissionError):
        os.pwrite(storage.segments.weights.fd, b"x", 0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exits", "ended with status 3"),
        ("is killed", "ended by signal 9"),
        ("exits after its plan", "ended with status 4"),
        ("is killed while it fills", "ended by signal 9"),
        ("exits badly at the end", "ended with status 5 after it had filled"),
        ("fails otherwise", "ConfigError: model: odd"),
    ],
)
async def test_however_the_loader_ends_it_is_a_model_error(how, message):
    with pytest.raises(ModelError, match=message):
        await load(config(how))


async def test_a_loader_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr("services.memd.loading.END_TIMEOUT_S", 0.1)
    with pytest.raises(ModelError, match=r"not ended 0\.1 s later"):
        await load(config("does not end"))


async def test_a_failure_keeps_its_type_and_text():
    with pytest.raises(UnsupportedModelError, match="family 'bert' is not built"):
        await load(config("fails"))


async def test_a_module_that_does_not_start_is_a_model_error():
    with pytest.raises(ModelError, match="ended with status 1"):
        await load_storage(
            config("works"), MemfdExporter(), MonotonicClock(), lambda c, kind: Loader(c, kind, "tests.support.none")
        )


async def test_leaving_ends_the_loader():
    async with fake_loader(config("waits"), SegmentKind.MEMFD) as loader:
        pid = loader._process.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_stop_while_loading_is_no_error():
    stop = asyncio.Event()
    stop.set()
    assert await load_unless_stopped(config("/nowhere"), stop) is None


async def test_too_little_kv_names_its_key_before_the_weights_are_loaded():
    with pytest.raises(ConfigError, match=r"memd\.kv_bytes: 1792 bytes hold 7 KV blocks.*need 2048"):
        await load(config("is killed while it fills").model_copy(update={"kv_bytes": BLOCK_BYTES * 8 - 256}))


def test_a_reserve_of_everything_is_refused():
    with pytest.raises(ConfigError, match=r"memd\.reserve_blocks: 32 of 32"):
        plan_kv(config("works", reserve_blocks=32), PLAN, SegmentKind.MEMFD)


async def test_memory_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match="segment kv needs"):
        await load(config("works"), available_bytes=BLOCK_BYTES * 31)


def test_weights_and_kv_need_their_memory_together():
    """Neither has taken any when the other is made."""
    kv_bytes, weight_bytes = BLOCK_BYTES * 32, MANIFEST.total_bytes
    enough = replace(PLAN, free_bytes=kv_bytes + weight_bytes)
    short = replace(PLAN, free_bytes=kv_bytes + weight_bytes - 1)
    assert plan_kv(config("works"), enough, SegmentKind.MEMFD).num_blocks == 32
    with pytest.raises(DeviceError, match=r"weights \(0 MiB\) and KV \(0 MiB\) .* lower memd\.kv_bytes"):
        plan_kv(config("works"), short, SegmentKind.MEMFD)
    assert plan_kv(config("works", touch_kv=False), short, SegmentKind.MEMFD).num_blocks == 32
    assert plan_kv(config("works"), short, SegmentKind.CUDA_VMM).num_blocks == 32, "there the second takes what is left"


def test_a_plan_survives_the_wire():
    assert decode_plan(decode(encode_plan(PLAN))) == PLAN


@pytest.mark.parametrize(
    ("asked", "flags", "native_level", "dtype"),
    [
        ("auto", {"avx2", "avx512_bf16"}, "", "bfloat16"),
        ("auto", {"amx_bf16"}, "", "bfloat16"),
        ("auto", {"avx2", "avx512f"}, "", "float32"),
        ("auto", {"avx2", "avx512f"}, "avx2", "bfloat16"),
        ("auto", set(), "", "float32"),
        ("float32", {"avx512_bf16"}, "avx512bf16", "float32"),
        ("bfloat16", set(), "", "bfloat16"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_quick(asked, flags, native_level, dtype):
    assert choose_dtype(asked, SegmentKind.MEMFD, frozenset(flags), native_level) == dtype


def test_flags_are_read_from_cpuinfo():
    text = "processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: other\n"
    assert cpu_flags(text) == {"fpu", "avx512_bf16"}
    assert cpu_flags("Features : fp asimd\n") == frozenset()
