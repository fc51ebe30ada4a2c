"""Costs beside the steps: processes' CPU time and memory, segments, what of a step is no operator; and their plots."""

import mmap
import os
import time
from dataclasses import replace

import pytest
import torch

from bench.micro.display import cost_table, memory_table
from bench.micro.gateway import request_us, table
from bench.micro.memory import kv_bytes, measure_services, weight_bytes
from bench.micro.overhead import OperatorTime, overhead_shapes
from bench.micro.processes import cpu_time, memory
from bench.micro.table import GatewayCost, MicroResult, ModelFacts, SegmentSize, StepOverhead, StepShape, StepTime
from bench.plots import plot
from bench.reading import read_result
from bench.results import provenance, write_result
from kernels.table import torch_kernels
from tandem.clock import ManualClock
from tandem.kv.layout import KvLayout
from tandem.types import Phase
from tests.support.tiny_models import save_tiny_model, tiny_model

MEGA = 1_000_000
STEPS = tuple(
    StepTime(StepShape(Phase.DECODE, 1, batch, 1, context), batch * context / 100, 0.1, 9.0, 0.5)
    for batch in (1, 8)
    for context in (128, 4096)
)


def burn(seconds: float) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def test_cpu_time_grows_with_work_and_the_main_threads_is_the_loops():
    before = cpu_time(os.getpid())
    burn(0.2)
    after = cpu_time(os.getpid())
    assert after.total_s - before.total_s >= 0.15
    assert after.loop_s - before.loop_s >= 0.15


def test_another_threads_time_is_not_the_loops():
    from threading import Thread

    told = []
    before = cpu_time(os.getpid())

    def work() -> None:
        burn(0.3)
        told.append(cpu_time(os.getpid()))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert told[0].total_s - before.total_s >= 0.25
    assert told[0].loop_s - before.loop_s < 0.2


def test_memory_grows_by_what_is_written():
    before = memory(os.getpid())
    with mmap.mmap(-1, 64 * MEGA, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # malloc may have as much over
        written = b"\1" * MEGA  # and keeps what it is given back
        for _ in range(64):
            held.write(written)
        after = memory(os.getpid())
    assert after.pss_anonymous_bytes - before.pss_anonymous_bytes == pytest.approx(64 * MEGA, rel=0.2)
    assert after.rss_bytes >= after.pss_bytes >= after.pss_anonymous_bytes


def test_a_process_that_is_not_there_is_an_error():
    for read in (cpu_time, memory):
        with pytest.raises(ProcessLookupError):
            read(1 << 22)  # beyond what Linux numbers


def test_services_are_measured_by_name():
    (service,) = measure_services({"memd": os.getpid()})
    assert service.service == "memd"
    assert service.pss_bytes > MEGA


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_weights_formula_is_what_transformers_has(family, tmp_path):
    from tandem.model.source import open_model

    config = open_model(str(save_tiny_model(tmp_path, family)), tmp_path).config
    model = tiny_model(family)
    assert weight_bytes(config, "bfloat16") == 2 * sum(p.numel() for p in model.parameters())
    layout = KvLayout(config.num_layers, 10, 16, config.num_kv_heads, config.head_dim, "float32")
    assert kv_bytes(config, layout) == torch.empty(layout.shape, dtype=torch.float32).nbytes


def test_time_within_operators_is_counted_once():
    clock = ManualClock()
    slow = lambda *args: clock.advance(0.02)  # noqa: E731
    counter = OperatorTime(clock.now)
    inner = counter.counted(replace(torch_kernels(), silu_mul=slow, plan_attention=slow))
    outer = counter.counted(replace(inner, linear=lambda *args: inner.silu_mul(args[0])))
    outer.linear(torch.ones(1), torch.ones(1))
    assert counter.take_ms() == pytest.approx(20)  # not the inner one's again
    outer.plan_attention()
    assert counter.take_ms() == 0
    assert outer.name == "torch"


def test_what_a_fused_operator_does_is_counted_and_making_it_is_not():
    clock = ManualClock()
    slow = lambda *args: clock.advance(0.02)  # noqa: E731
    counter = OperatorTime(clock.now)
    kernels = counter.counted(replace(torch_kernels(), fuse_layers=lambda stack: slow(stack) or slow))
    run = kernels.fuse_layers("stack")
    assert counter.take_ms() == 0
    run("embedded")
    assert counter.take_ms() == pytest.approx(20)


def result() -> MicroResult:
    shape = overhead_shapes([1])[0]
    return MicroResult(
        provenance=provenance(),
        model=ModelFacts("m", "bfloat16", 2 * MEGA, 1000, 2 * MEGA, 16),
        floors=(),
        steps=STEPS,
        decisions=(),
        leases=(),
        gateway=(GatewayCost(16, 4096, 80.0, 55.0),),
        gateway_request_us=1500.0,
        overhead=(StepOverhead(shape, 10.0, 9.5, 0.05),),
        segments=(SegmentSize("weights", 270 * MEGA, 269 * MEGA),),
        services=measure_services({"memd": os.getpid()}),
    )


def test_what_a_request_costs_beside_its_tokens_follows_from_two_lengths():
    """2 ms a request and 80 us a token, by hand."""
    costs = [GatewayCost(16, 4096, 80.0 + 2000.0 / length, num_output_tokens=length) for length in (64, 400)]
    alone = GatewayCost(1, 1024, 700.0, num_output_tokens=64)
    assert request_us([alone, *costs]) == pytest.approx(2000.0)
    assert request_us([alone, costs[0]]) is None, "one length says nothing"
    caption = table([[alone, *costs], [alone, *costs]]).caption
    assert "2000 (2000 to 2000) us" in str(caption)


def test_growth_and_memory_are_drawn_and_told(tmp_path):
    write_result(tmp_path / "m.json", result(), MicroResult)
    paths = plot(read_result(tmp_path / "m.json"), tmp_path, "m")
    assert [path.name for path in paths] == ["m-growth.png", "m-memory.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    told = [
        cell
        for table in (cost_table(result()), memory_table(result()))
        for column in table.columns
        for cell in column.cells
    ]
    assert "55 us a token" in told
    assert "1500 us" in told
    assert "5.0 % of 10.0 ms" in told
    assert "formula 269.0" in told
