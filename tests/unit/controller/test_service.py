"""The controller's methods through a real server and the generated client."""

import asyncio

import grpc
import pytest

from tandem.config.settings import ControllerConfig
from tandem.errors import InvalidRequestError
from tandem.rpc.status import error_from_rpc
from tandem.rpc.stubs.controller.v1 import controller_pb2 as pb
from tandem.rpc.stubs.controller.v1 import controller_pb2_grpc as pb_grpc
from tests.support.controller import HostedController
from tests.support.sockets import short_run_dir

HELLO = pb.LinkRequest(hello=pb.PhaseHello(phase="decode", pid=42, partition_backend="cpu-affinity"))
STEP = pb.LinkRequest(step=pb.StepStatistics(duration_ms=12.0, num_sequences=1, num_tokens=8, num_context_tokens=8))


@pytest.fixture
async def hosted():
    with short_run_dir() as run_dir:
        hosted = HostedController(ControllerConfig(run_dir=run_dir, prefill_percent=40, decode_percent=60))
        await hosted.start()
        yield hosted
        await hosted.stop()


@pytest.fixture
async def stub(hosted):
    async with grpc.aio.insecure_channel(hosted.address) as channel:
        yield pb_grpc.ControllerServiceStub(channel)


async def read(call):
    return await asyncio.wait_for(call.read(), 10)


async def decode_status(stub) -> pb.PhaseStatus:
    status = await stub.GetStatus(pb.GetStatusRequest())
    return next(phase for phase in status.phases if phase.phase == "decode")


async def invalid_field(awaitable) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await awaitable
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = error_from_rpc(raised.value)
    assert isinstance(error, InvalidRequestError)
    return error.field


async def test_a_link_gets_the_split_and_every_change(stub):
    link = stub.Link()
    await link.write(HELLO)
    first = await read(link)
    assert (first.decision_id, first.split.prefill_percent, first.split.decode_percent) == (1, 40, 60)
    answer = await stub.SetSplit(pb.SetSplitRequest(split=pb.Split(prefill_percent=100, decode_percent=100)))
    second = await read(link)
    assert second.decision_id == answer.decision_id == 2
    assert second.split.decode_percent == 100
    link.cancel()


async def test_reports_show_in_the_status(stub):
    link = stub.Link()
    await link.write(HELLO)
    await link.write(STEP)
    await link.write(pb.LinkRequest(applied=pb.ShareApplied(decision_id=1, detail="cores 1; threads 1")))
    await link.done_writing()
    assert (await read(link)).decision_id == 1
    assert await read(link) is grpc.aio.EOF
    status = await decode_status(stub)
    assert (status.connected, status.pid, status.applied_decision_id) == (False, 42, 1)
    assert (status.step_p50_ms, status.applied_detail) == (12.0, "cores 1; threads 1")


async def test_the_status_shows_a_link_while_it_is_open(stub):
    link = stub.Link()
    await link.write(HELLO)
    await read(link)
    assert (await decode_status(stub)).connected
    await link.done_writing()
    await read(link)
    assert not (await decode_status(stub)).connected


@pytest.mark.parametrize("reports", [[], [STEP], [pb.LinkRequest()]])
async def test_a_link_must_begin_with_hello(stub, reports):
    link = stub.Link()
    for report in reports:
        await link.write(report)
    if not reports:
        await link.done_writing()
    assert await invalid_field(read(link)) == "hello"


async def test_a_phase_that_does_not_exist(stub):
    link = stub.Link()
    await link.write(pb.LinkRequest(hello=pb.PhaseHello(phase="decoed")))
    assert await invalid_field(read(link)) == "hello.phase"


@pytest.mark.parametrize("report", [HELLO, pb.LinkRequest()])
async def test_a_report_out_of_place_ends_the_link(stub, report):
    link = stub.Link()
    await link.write(HELLO)
    await read(link)
    await link.write(report)
    assert await invalid_field(read(link)) == "report"
    assert not (await decode_status(stub)).connected


async def test_observations_are_counted_until_the_stream_ends(stub):
    requests = [pb.ObserveRequest(ttft_ms=100.0, tpot_ms=20.0, num_output_tokens=5, ok=True) for _ in range(3)]
    await stub.Observe(iter(requests))
    status = await stub.GetStatus(pb.GetStatusRequest())
    assert (status.num_requests_observed, status.ttft_p50_ms, status.tpot_p99_ms) == (3, 100.0, 20.0)


async def test_observations_that_make_no_sense_do_no_harm(stub):
    nan, inf = float("nan"), float("inf")
    await stub.Observe(iter([pb.ObserveRequest(ttft_ms=ms, tpot_ms=ms, ok=True) for ms in (nan, inf, -1.0)]))
    status = await stub.GetStatus(pb.GetStatusRequest())
    assert (status.num_requests_observed, status.ttft_p99_ms) == (0, 0.0)


@pytest.mark.parametrize(
    ("split", "field"),
    [
        (pb.Split(prefill_percent=0, decode_percent=50), "split.prefill_percent"),
        (pb.Split(prefill_percent=50, decode_percent=101), "split.decode_percent"),
        (None, "split.prefill_percent"),
    ],
)
async def test_a_split_out_of_range_is_refused(stub, split, field):
    assert await invalid_field(stub.SetSplit(pb.SetSplitRequest(split=split))) == field
    status = await stub.GetStatus(pb.GetStatusRequest())
    assert (status.decision_id, status.reason) == (1, "as configured")
