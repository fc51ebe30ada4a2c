import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from kernels.table import torch_kernels
from tandem.config.settings import DecodeConfig
from tandem.device.cpu.memory import MemfdExporter, MemfdImporter, MemfdSegment
from tandem.device.memory import SegmentHandle
from tandem.errors import FingerprintMismatchError, NotReadyError
from tandem.kv.layout import LAYOUT, KvLayout
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig, WeightManifest
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family
from tandem.phase.storage import AttachmentLike, MappedModel, attach, claim, map_model
from tandem.runner.model_runner import ModelRunner
from tandem.runner.steps import LogitsThenDraws
from tandem.types import Fingerprint

CONFIG = ModelConfig("llama", 32, 48, 2, 4, 2, 8, 64, 128, 1e-5, 1e4)
LAYOUT_OF_KV = KvLayout(2, 8, 4, 2, 8, "float32")


@dataclass
class StubAttachment:
    """What memd would hand over."""

    segments: dict[str, SegmentHandle]
    manifest: WeightManifest
    model_config: ModelConfig = CONFIG
    kv_layout: KvLayout = LAYOUT_OF_KV
    holder_id: int = 3
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_reclaim(self) -> int:
        raise NotReadyError("ended")

    async def detach(self) -> None: ...


@dataclass
class Memd:
    """Answers attach with these, one after another."""

    answers: list[Exception | AttachmentLike]
    claims: list[Fingerprint] = field(default_factory=list)

    async def attach(self, service: str, pid: int, fingerprint: Fingerprint) -> AttachmentLike:
        self.claims.append(fingerprint)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def attachment() -> StubAttachment:
    """A random model in a sealed segment, and empty KV."""
    torch.manual_seed(0)
    manifest = build_manifest(get_family("llama").parameters(CONFIG), "float32")
    exporter = MemfdExporter()
    weights: MemfdSegment = exporter.create("weights", manifest.total_bytes)
    mapped = MemfdImporter().map(weights, writable=True)
    for place in manifest.tensors.values():
        mapped.tensor("float32", place.shape, place.offset_bytes).copy_(torch.randn(place.shape) * 0.3)
    weights.seal()
    kv = exporter.create("kv", LAYOUT_OF_KV.total_bytes)
    return StubAttachment({"weights": weights, "kv": kv}, manifest)


def logits(model: MappedModel, rows: Sequence[SequenceRows]) -> torch.Tensor:
    assert isinstance(model.steps, LogitsThenDraws)
    return model.steps.runner.execute(rows)


def test_two_phases_map_one_model_and_one_kv() -> None:
    storage = attachment()
    first, second = map_model(storage, MemfdImporter()), map_model(storage, MemfdImporter())
    prompt, block_ids = list(range(1, 11)), [5, 2, 7]
    whole = logits(first, [SequenceRows(prompt, 0, block_ids)])
    logits(first, [SequenceRows(prompt[:9], 0, block_ids)])
    handed_over = logits(second, [SequenceRows(prompt[9:], 9, block_ids)])
    torch.testing.assert_close(whole, handed_over, atol=1e-4, rtol=1e-4)


def test_the_mapped_model_computes_what_its_weights_say() -> None:
    storage = attachment()
    mapped = MemfdImporter().map(storage.segments["weights"], writable=False)
    copies = {
        name: mapped.tensor("float32", place.shape, place.offset_bytes).clone()
        for name, place in storage.manifest.tensors.items()
    }
    alone = ModelRunner(get_family("llama").build(CONFIG, copies, torch_kernels()), torch.zeros(LAYOUT_OF_KV.shape), 4)
    rows = [SequenceRows([3, 1, 4, 1, 5], 0, [0, 1])]
    torch.testing.assert_close(alone.execute(rows), logits(map_model(storage, MemfdImporter()), rows))


async def test_attaching_tries_until_memd_answers_and_says_so_once_a_reason() -> None:
    storage = attachment()
    memd = Memd([NotReadyError("away"), NotReadyError("away"), NotReadyError("loading"), storage])
    with capture_logs() as logs:
        assert await attach(memd, "decode", 1, Fingerprint()) is storage
    waiting = [entry["error"] for entry in logs if entry["event"] == "memd.waiting"]
    assert waiting == ["away", "loading"]


async def test_a_mismatch_is_not_tried_again() -> None:
    memd = Memd([FingerprintMismatchError("dtype: float32 is not bfloat16")])
    with pytest.raises(FingerprintMismatchError):
        await attach(memd, "decode", 1, Fingerprint())


def test_the_claim_names_dtype_and_layout(tmp_path: Path) -> None:
    made = claim(DecodeConfig(run_dir=tmp_path, dtype="float32"))
    assert made == Fingerprint(dtype="float32", layout=LAYOUT)


def test_the_kernels_in_force_are_logged_once() -> None:
    with capture_logs() as logs:
        map_model(attachment(), MemfdImporter())
    chosen = [entry for entry in logs if entry["event"] == "kernels.chosen"]
    assert [(entry["kernels"], "float32" in entry["reason"]) for entry in chosen] == [("torch", True)]
