"""The Run stream against a real server: commands there, results here, and what is lost named."""

import asyncio
import gc

import pytest

from tandem.errors import NotReadyError
from tandem.rpc.codecs import commands_from_proto, decode_result_to_proto, prefill_result_to_proto
from tandem.rpc.phase_client import PhaseClient, ended_lease_ids
from tandem.rpc.server import ServiceHost
from tandem.rpc.stubs.decode.v1 import decode_pb2_grpc
from tandem.rpc.stubs.prefill.v1 import prefill_pb2_grpc
from tandem.types import (
    AbortSequence,
    DecodeResult,
    DropReason,
    FinishReason,
    Phase,
    Prefilled,
    PrefillResult,
    SamplingSpec,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    StopSpec,
    Submit,
)

ENCODE = {Phase.PREFILL: prefill_result_to_proto, Phase.DECODE: decode_result_to_proto}


class Peer:
    """Either phase's servicer: keeps commands, sends what the test puts in, ends the stream at None."""

    def __init__(self, phase):
        self.phase = phase
        self.commands = asyncio.Queue()
        self.results = asyncio.Queue()
        self.num_refusals = 0
        self.takes_more = True
        self.num_messages = 0

    async def Run(self, request_iterator, context):  # noqa: N802
        if self.num_refusals:
            self.num_refusals -= 1
            raise NotReadyError("waiting for memd")

        async def read():
            async for message in request_iterator:
                self.num_messages += 1
                for command in commands_from_proto(message):
                    self.commands.put_nowait(command)

        reader = asyncio.ensure_future(read())
        try:
            while (result := await self.results.get()) is not None:
                message = ENCODE[self.phase](result)
                message.takes_more = self.takes_more
                yield message
        finally:
            reader.cancel()


class Listener:
    """Events as they come."""

    def __init__(self):
        self.events = asyncio.Queue()

    def phase_connected(self, phase):
        self.events.put_nowait(("connected", phase))

    def phase_result(self, result):
        self.events.put_nowait(("result", result))

    def phase_lost(self, phase, lease_ids):
        self.events.put_nowait(("lost", lease_ids))

    async def next(self):
        async with asyncio.timeout(20):
            return await self.events.get()


def spec(lease_id):
    return SequenceSpec(lease_id, "r", (1, 2, 3), 3, SamplingSpec(), StopSpec(5))


async def serve(phase, peer, address):
    host = ServiceHost([], [address])
    if phase is Phase.PREFILL:
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(peer, host.server)
    else:
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(peer, host.server)
    await host.start()
    return host


class Link:
    """A client at work on a peer."""

    def __init__(self, phase, address, peer, host):
        self.phase, self.address, self.peer, self.host = phase, address, peer, host
        self.client = PhaseClient(phase, address)
        self.listener = Listener()


@pytest.fixture(params=list(Phase))
async def link(request, tmp_path):
    address = f"unix:{tmp_path}/p.sock"
    peer = Peer(request.param)
    link = Link(request.param, address, peer, await serve(request.param, peer, address))
    link.client.start(link.listener)
    yield link
    await link.client.close()
    await link.host.stop(0)


async def connected(link):
    link.host.set_serving(True)
    assert await link.listener.next() == ("connected", link.phase)
    assert link.client.connected


def ending(phase, *lease_ids):
    """A result that ends the leases, each in another way."""
    outputs = [SequenceOutput(lease_id, 7, None, FinishReason.STOP) for lease_id in lease_ids[1:]]
    dropped = (SequenceDropped(lease_ids[0], DropReason.PREEMPTED),)
    if phase is Phase.PREFILL:
        return PrefillResult(tuple(Prefilled(output, 1.0, 2.0, 0) for output in outputs), dropped)
    return DecodeResult(tuple(outputs), dropped)


async def test_commands_go_in_order_and_results_come_back(link):
    await connected(link)
    link.client.submit(spec(1))
    link.client.abort(1)
    assert await link.peer.commands.get() == Submit(spec(1))
    assert await link.peer.commands.get() == AbortSequence(1)
    result = ending(link.phase, 1, 2)
    link.peer.results.put_nowait(result)
    assert await link.listener.next() == ("result", result)


async def test_commands_of_one_turn_go_together_once_the_phase_has_said_that_it_takes_them(link):
    await connected(link)
    link.client.submit(spec(1))
    assert await link.peer.commands.get() == Submit(spec(1))
    link.peer.results.put_nowait(ending(link.phase, 1))
    assert (await link.listener.next())[0] == "result"
    told = [spec(lease_id) for lease_id in range(2, 12)]
    for each in told:
        link.client.submit(each)
    assert [await link.peer.commands.get() for _ in told] == [Submit(each) for each in told]
    assert link.peer.num_messages < 1 + len(told)


async def test_a_phase_of_an_earlier_release_gets_each_command_alone(link):
    link.peer.takes_more = False
    await connected(link)
    link.peer.results.put_nowait(ending(link.phase, 1))
    assert (await link.listener.next())[0] == "result"
    for lease_id in (2, 3, 4):
        link.client.submit(spec(lease_id))
    assert [await link.peer.commands.get() for _ in range(3)] == [Submit(spec(lease_id)) for lease_id in (2, 3, 4)]
    assert link.peer.num_messages == 3


async def test_a_loss_names_what_was_in_flight(link):
    await connected(link)
    for lease_id in (1, 2, 3, 4):
        link.client.submit(spec(lease_id))
    link.peer.results.put_nowait(ending(link.phase, 1, 2))
    assert (await link.listener.next())[0] == "result"
    link.peer.results.put_nowait(None)
    assert await link.listener.next() == ("lost", frozenset({3, 4}))
    assert await link.listener.next() == ("connected", link.phase), "it comes back by itself"
    link.peer.results.put_nowait(None)
    assert await link.listener.next() == ("lost", frozenset())


async def test_a_broken_stream_leaves_nothing_behind(link):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    for _ in range(3):
        await connected(link)
        link.peer.results.put_nowait(None)
        assert await link.listener.next() == ("lost", frozenset())
        gc.collect()  # a task that still waits says so when it is destroyed
    assert complaints == []


async def test_a_phase_that_dies_and_starts_again(link):
    await connected(link)
    link.client.submit(spec(9))
    await link.peer.commands.get()
    await link.host.stop(0)
    assert await link.listener.next() == ("lost", frozenset({9}))
    with pytest.raises(NotReadyError):
        link.client.submit(spec(10))
    link.client.abort(9)
    link.peer = Peer(link.phase)
    link.host = await serve(link.phase, link.peer, link.address)
    await connected(link)
    link.client.submit(spec(11))
    assert await link.peer.commands.get() == Submit(spec(11))


async def test_a_phase_that_is_not_serving_gets_nothing(link):
    assert not link.client.connected
    with pytest.raises(NotReadyError):
        link.client.submit(spec(1))
    await connected(link)


async def test_closing_tells_of_the_loss(link):
    await connected(link)
    link.client.submit(spec(5))
    await link.client.close()
    assert await link.listener.next() == ("lost", frozenset({5}))


async def test_a_phase_that_refuses_the_stream_is_tried_again(link):
    link.peer.num_refusals = 2
    result = ending(link.phase, 1)
    link.peer.results.put_nowait(result)
    link.host.set_serving(True)
    events = [await link.listener.next()]
    while events[-1][0] != "result":
        events.append(await link.listener.next())
    assert link.peer.num_refusals == 0
    assert events[-2:] == [("connected", link.phase), ("result", result)]
    assert {lost for name, lost in events if name == "lost"} <= {frozenset()}


def test_only_ends_are_ends():
    going_on = SequenceOutput(1, 7)
    assert set(ended_lease_ids(DecodeResult((going_on,)))) == set()
    assert set(ended_lease_ids(PrefillResult((Prefilled(going_on, 0, 0, 0),)))) == {1}
    assert set(ended_lease_ids(ending(Phase.DECODE, 2, 3))) == {2, 3}
