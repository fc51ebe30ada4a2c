"""A model into device memory, by memd and its real loader, over fake drivers; then mapped as phases map it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from services.memd.daemon import DEVICE_SHARE, HOST_KV_BYTES, Storage, default_kv_bytes, load_storage, plan_kv
from services.memd.load import choose_dtype
from services.memd.loading import Loader
from tandem.clock import MonotonicClock
from tandem.config.settings import MemdConfig
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.memory import ExportedSegment, SegmentKind
from tandem.device.memory_backends import SegmentImporter
from tandem.errors import ConfigError, DeviceError, ModelError
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig, WeightManifest
from tandem.phase.storage import map_model
from tandem.runner.steps import LogitsThenDraws
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_cuda.base import DeviceSpec
from tests.support.fake_cuda.host import fake_driver, importers_over
from tests.support.memd import MANIFEST, PLAN

ROOT = Path(__file__).parents[3]
KV_BYTES = 64 << 10
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
CONTEXT_CALLS = ("cuCtx", "cuDevicePrimaryCtx", "cuMemMap", "cuMemGetInfo", "cuMemAlloc")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def config(tmp_path) -> MemdConfig:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    return MemdConfig(
        model=f"random:{tmp_path}/config.json",
        run_dir=tmp_path,
        block_size=4,
        kv_bytes=KV_BYTES,
        dtype="float32",
        reserve_blocks=2,
    )


async def load(config: MemdConfig, exporter, module: str = "tests.support.fake_cuda.loader") -> Storage:
    return await load_storage(config, exporter, MonotonicClock(), lambda c, kind: Loader(c, kind, module))


def logits(storage: Storage, driver: FakeCuda) -> torch.Tensor:
    attachment = SimpleNamespace(
        segments={"weights": storage.segments.weights, "kv": storage.segments.kv},
        manifest=WeightManifest.from_json(storage.plan.manifest_json),
        model_config=ModelConfig.from_json(storage.plan.model_config_json),
        kv_layout=storage.kv_layout,
    )
    model = map_model(attachment, SegmentImporter(importers_over(driver)))
    assert isinstance(model.steps, LogitsThenDraws)
    return model.steps.runner.execute([SequenceRows([3, 1, 4, 1, 5, 9], 0, [1, 0])])


def is_zero(segment: ExportedSegment) -> bool:
    mapped = SegmentImporter(importers_over(fake_driver())).map(segment, writable=False)
    zero = not mapped.tensor("uint8", (mapped.size_bytes,)).any()
    mapped.close()
    return zero


async def test_phases_compute_over_device_memory_what_they_compute_over_the_machines(config):
    memd = fake_driver()
    on_device = await load(config, VmmExporter(memd))
    assert is_zero(on_device.segments.kv), "a device's memory holds anything at first"
    on_machine = await load(config, MemfdExporter(), "services.memd.load")
    phases = [fake_driver(), fake_driver()]
    expected = logits(on_machine, phases[0])
    assert expected.std() > 0.01
    for phase in phases:
        torch.testing.assert_close(logits(on_device, phase), expected)
        assert phase.memory.owned_bytes == 0, "a phase takes no memory for weights or KV"
    assert not [call for call in memd.base.calls if call.startswith(CONTEXT_CALLS)]
    assert (on_device.segments.weights.sealed, on_device.segments.kv.sealed) == (True, False)
    assert on_device.segments.ledger.kind is SegmentKind.MEMFD


async def test_kv_that_fits_no_device_is_refused(config):
    small = VmmExporter(fake_driver(DeviceSpec(memory_bytes=2 << 20)))
    with pytest.raises(DeviceError, match="segment kv needs 2 MiB"):
        await load(config.model_copy(update={"model": "works"}), small, "tests.support.fake_loader")


async def test_a_loader_without_the_device_says_so(config):
    """The real loader, over the real driver, of which there is none here."""
    try:
        await load(config, VmmExporter(fake_driver()), "services.memd.load")
    except ModelError as error:
        assert "DeviceError" in str(error)
    else:
        pytest.skip("there is a CUDA driver")


def test_on_a_device_the_kv_takes_what_the_weights_leave_of_the_share():
    plan = replace(PLAN, free_bytes=100 << 20)
    assert default_kv_bytes(plan, SegmentKind.CUDA_VMM) == int((100 << 20) * DEVICE_SHARE) - MANIFEST.total_bytes
    assert default_kv_bytes(plan, SegmentKind.MEMFD) == HOST_KV_BYTES


def test_weights_that_leave_nothing_are_refused_by_the_key():
    plan = replace(PLAN, free_bytes=MANIFEST.total_bytes)
    with pytest.raises(ConfigError, match=r"memd\.kv_bytes: 0 bytes hold 0 KV blocks"):
        plan_kv(MemdConfig(model="m"), plan, SegmentKind.CUDA_VMM)


def test_what_is_configured_wins_over_the_share():
    plan = replace(PLAN, free_bytes=100 << 20)
    config = MemdConfig(model="m", block_size=4, kv_bytes=1 << 20)
    layouts = [plan_kv(config, plan, kind) for kind in SegmentKind]
    assert layouts[0] == layouts[1] == layouts[2]


@pytest.mark.parametrize("kind", [SegmentKind.CUDA_VMM, SegmentKind.CUDA_IPC])
def test_a_gpu_has_bfloat16(kind):
    assert choose_dtype("auto", kind, frozenset(), "") == "bfloat16"
    assert choose_dtype("float32", kind, frozenset(), "") == "float32"
