"""What only a GPU can show of the kernels: CUDA graphs of them, where programs run, products that are not rounded."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kernels.gpu.kernels import gpu_kernels
from kernels.gpu.linear import linear_float32
from kernels.gpu.sample_tokens import sample_tokens
from kernels.gpu.sampling_rows import RowRequest, pack_rows
from kernels.gpu.sm_probe import probe_sms
from kernels.gpu.sm_use import sm_use
from kernels.quantised import WeightFormat, dequantise, quantise
from tandem.types import SamplingSpec
from tests.support.attention_cases import PagedStep, dense_attention, sequences_of
from tests.support.gpu import SKIP_REASON

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=SKIP_REASON)]

CUDA = torch.device("cuda")


def captured(compute: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """The graph of `compute`, which was run before so that its kernels are compiled, and what a replay writes."""
    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    return graph, result


@pytest.mark.parametrize("shapes", [[(90, 1), (40, 1), (700, 1)], [(90, 60), (40, 1), (33, 33)]], ids=["rows", "mixed"])
def test_a_replayed_plan_follows_its_tensors(shapes: list[tuple[int, int]]) -> None:
    subject = PagedStep(sequences_of(shapes), 16, torch.bfloat16, gpu_kernels(132), CUDA)
    plan = subject.plan()

    def attend() -> torch.Tensor:
        return subject.kernels.paged_attention(
            subject.query, subject.key_cache, subject.value_cache, plan, scale=24**-0.5
        )

    graph, result = captured(attend)
    backwards = shapes[::-1]
    other = PagedStep(sequences_of(backwards, 1), 16, torch.bfloat16, gpu_kernels(132), CUDA)
    for name in ("query", "key_cache", "value_cache", "block_tables", "query_start", "context_lens"):
        getattr(subject, name).copy_(getattr(other, name))
    graph.replay()
    exact = torch.cat([dense_attention(sequence) for sequence in sequences_of(backwards, 1)])
    torch.testing.assert_close(result.cpu().double(), exact, atol=2e-2, rtol=2e-2)


def test_a_captured_draw_advances_with_its_positions() -> None:
    logits = torch.randn(4, 9000, device=CUDA)
    requests = [RowRequest(SamplingSpec(temperature=1.0, top_p=0.9, seed=seed), 1) for seed in range(4)]
    seen = torch.zeros(1, 9000, dtype=torch.int32, device=CUDA)
    rows = pack_rows(requests, seen, max_biased=1, max_banned=1)
    graph, token_ids = captured(lambda: sample_tokens(logits, rows))
    for position in (1, 2, 3):
        rows.position.fill_(position)
        graph.replay()
        replayed = token_ids.tolist()
        assert replayed == sample_tokens(logits, rows).tolist()


def test_float32_products_are_not_rounded() -> None:
    x, weight = (torch.randn(3, 512, device=CUDA).bfloat16(), torch.randn(40, 512, device=CUDA).bfloat16())
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(linear_float32(x, weight).double(), exact, rtol=1e-5, atol=1e-4)


def test_float32_products_with_quantised_weights_are_not_rounded() -> None:
    x, values = torch.randn(3, 512, device=CUDA).bfloat16(), torch.randn(48, 512)
    on_host = quantise(values, WeightFormat.INT8)
    weight = replace(on_host, digits=on_host.digits.to(CUDA), scales=on_host.scales.to(CUDA))
    exact = x.double() @ dequantise(weight, torch.bfloat16).double().T
    torch.testing.assert_close(linear_float32(x, weight).double(), exact, rtol=1e-5, atol=1e-4)


def test_a_lone_probe_reaches_every_sm() -> None:
    use = sm_use(probe_sms(CUDA, hold_ns=200_000))
    assert use.sm_ids == frozenset(range(torch.cuda.get_device_properties(CUDA).multi_processor_count))
    assert use.ended_ns - use.started_ns >= 200_000
