"""Quantised weights through the whole system: memd stores them once, phases compute over them, others are refused."""

import pytest
import torch

from bench.accuracy.model import TextModel, load_weights
from kernels.table import torch_kernels
from tandem.errors import FingerprintMismatchError
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family
from tandem.model.source import open_model
from tandem.rpc.memd_client import MemdClient
from tandem.types import Fingerprint
from tests.e2e.test_services import answers, request
from tests.support.deployment import deployment
from tests.support.paged_decoder import one_thread

NUM_TOKENS = 12


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return str(tiny_model_dir("llama"))


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantization(request):
    return request.param


@pytest.fixture(scope="module")
def system(model, quantization):
    settings = {"memd": {"kv-bytes": 16 << 20, "dtype": "float32", "quantization": quantization}}
    with deployment(model, settings) as running:
        yield running


@pytest.fixture
async def memd(system):
    client = MemdClient(system.socket("memd"))
    yield client
    await client.close()


def continuation(model: str, quantization: str, prompt: list[int]) -> list[int]:
    """Greedy, over weights that this process quantised."""
    source = open_model(model, None)
    weights = load_weights(source, "float32", quantization)
    room = {"num_sequences": 1, "max_tokens": len(prompt) + NUM_TOKENS}
    text = TextModel(source.config, weights, torch_kernels(), dtype=torch.float32, **room)
    token_ids = list(prompt)
    for _ in range(NUM_TOKENS):
        token_ids.append(int(text.logits([token_ids], 0)[-1].argmax()))
    return token_ids[len(prompt) :]


async def test_answers_are_those_of_the_quantised_model(system, model, quantization):
    asked = request(3, NUM_TOKENS)
    (answer,) = await answers(system.gateway, [asked])
    with one_thread():
        assert list(answer.token_ids) == continuation(model, quantization, list(asked.token_ids.ids))


async def test_the_segment_has_the_bytes_that_the_manifest_says(memd, model, quantization):
    config = open_model(model, None).config
    parameters = get_family(config.family).parameters(config)
    statistics = await memd.statistics()
    assert statistics.weight_bytes == build_manifest(parameters, "float32", quantization).total_bytes
    plain = build_manifest(parameters, "float32").total_bytes
    assert statistics.weight_bytes < plain * (0.32 if quantization == "int8" else 0.27)
    assert statistics.fingerprint.dtype == f"float32+{quantization}"
    assert statistics.fingerprint.kv_dtype == "float32"


async def test_a_phase_that_expects_other_weights_is_refused(memd, quantization):
    for expected in ("float32", f"bfloat16+{quantization}"):
        with pytest.raises(FingerprintMismatchError) as refusal:
            await memd.attach("prefill", 1, Fingerprint(dtype=expected))
        assert f"dtype: prefill has '{expected}', memd has 'float32+{quantization}'" in str(refusal.value)
    attachment = await memd.attach("prefill", 1, Fingerprint(dtype=f"float32+{quantization}"))
    await attachment.detach()
