"""The public client against a real server: every method, every error, and what its names are."""

import asyncio
import inspect
import queue
import threading
from concurrent import futures

import grpc
import pytest

import tandem.client
from tandem import errors
from tandem.client import AsyncClient, Client, RetryPolicy, Reuse, SegmentUsage, Span
from tandem.rpc.stubs.common.v1 import common_pb2
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tandem.types import FinishReason, TopLogprob

FAST = RetryPolicy(give_up_s=60, first_pause_s=0.001, last_pause_s=0.01)
USAGE = pb.Usage(num_prompt_tokens=2, num_output_tokens=3, num_cached_tokens=1)


class Recorder(pb_grpc.GatewayServiceServicer):
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self):
        self.asked = queue.Queue()
        self.pieces = []
        self.num_unavailable = 0
        self.ended = threading.Event()

    def Generate(self, request, context):  # noqa: N802
        self.asked.put(request)
        context.add_callback(self.ended.set)
        yield from self.pieces
        self.ended.wait(20)

    def Chat(self, request, context):  # noqa: N802
        self.asked.put(request)
        for piece in self.pieces:
            yield pb.ChatResponse(piece=piece)

    def GenerateOnce(self, request, context):  # noqa: N802
        self.asked.put(request)
        answer = pb.Answer(index=1, text="x", token_ids=[4], finish_reason=2, matched_stop="", usage=USAGE)
        return pb.GenerateOnceResponse(request_id="r", answers=[answer])

    def Tokenize(self, request, context):  # noqa: N802
        self.asked.put(request)
        return pb.TokenizeResponse(token_ids=[1, 2])

    def GetModelInfo(self, request, context):  # noqa: N802
        if self.num_unavailable:
            self.num_unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        return pb.GetModelInfoResponse(name="m", eos_token_ids=[2], max_context_tokens=9, has_chat_template=True)

    def Abort(self, request, context):  # noqa: N802
        context.abort(grpc.StatusCode.NOT_FOUND, f"no {request.request_id}")

    def GetStatus(self, request, context):  # noqa: N802
        return pb.GetStatusResponse(num_waiting=3, prefill_connected=True, tokens_per_s=1.5)


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    pb_grpc.add_GatewayServiceServicer_to_server(recorder, server)
    recorder.address = f"unix:{tmp_path}/c.sock"
    server.add_insecure_port(recorder.address)
    server.start()
    yield recorder
    recorder.ended.set()
    server.stop(0).wait()


@pytest.fixture
def client(recorder):
    with Client(recorder.address) as client:
        yield client


def test_generate_streams_and_closing_cancels(recorder, client):
    top = common_pb2.TopLogprob(token_id=8, logprob=-0.5)
    logprobs = [pb.TokenLogprobs(token_id=7, logprob=-1.0, top=[top])]
    recorder.pieces = [
        pb.GenerateResponse(request_id="r", index=1, text_delta="é", token_ids=[7], logprobs=logprobs),
        pb.GenerateResponse(request_id="r", finish_reason=1, matched_stop="END", usage=USAGE),
    ]
    pieces = client.generate(
        "hi", request_id="r", priority=2, timeout_s=30, temperature=0.5, stop="END", seed=None, n=2
    )
    first, last = next(pieces), next(pieces)
    asked = recorder.asked.get()
    assert (asked.text, asked.request_id, asked.priority) == ("hi", "r", 2)
    expected = pb.SamplingParams(temperature=0.5, stop=["END"], n=2)
    assert asked.sampling == expected
    assert (first.index, first.text_delta, first.token_ids, first.usage) == (1, "é", (7,), None)
    assert first.logprobs[0].top == (TopLogprob(8, -0.5),)
    assert (last.finish_reason, last.matched_stop) == (FinishReason.STOP, "END")
    assert last.usage.num_cached_tokens == 1
    recorder.ended.clear()
    pieces.close()
    assert recorder.ended.wait(20), "the server sees the cancellation"


def test_generate_once_with_token_ids(recorder, client):
    (answer,) = client.generate_once([5, 6], stop=["a", "b"], logit_bias={3: -1.0}, stop_token_ids=[9], ignore_eos=True)
    request = recorder.asked.get().request
    assert list(request.token_ids.ids) == [5, 6]
    assert list(request.sampling.stop) == ["a", "b"]
    assert dict(request.sampling.logit_bias) == {3: -1.0}
    assert (list(request.sampling.stop_token_ids), request.sampling.ignore_eos) == ([9], True)
    assert not request.sampling.HasField("temperature")
    assert (answer.request_id, answer.index, answer.text, answer.token_ids) == ("r", 1, "x", (4,))
    assert answer.finish_reason is FinishReason.LENGTH


def test_reuse_is_asked_for_and_told_of(recorder, client):
    segments = [pb.SegmentUsage(start=1, end=9, num_exact=1, num_approximate=4, num_computed=3)]
    usage = pb.Usage(
        num_prompt_tokens=9,
        num_cached_tokens=1,
        num_approximate_tokens=4,
        segments=segments,
        queue_ms=2.5,
        num_refreshed_tokens=3,
    )
    recorder.pieces = [pb.GenerateResponse(request_id="r", finish_reason=1, usage=usage)]
    (piece,) = client.chat([{"role": "user", "content": "hi"}], reuse=Reuse(0.5, ["hi"]))
    asked = recorder.asked.get().reuse
    assert (asked.ratio, [segment.text for segment in asked.segments]) == (0.5, ["hi"])
    assert (piece.usage.num_approximate_tokens, piece.usage.segments) == (4, (SegmentUsage(1, 9, 1, 4, 3),))
    assert (piece.usage.queue_ms, piece.usage.num_refreshed_tokens) == (2.5, 3)
    client.generate_once([1, 2, 3], reuse=Reuse(segments=[Span(1, 3)]))
    asked = recorder.asked.get().request.reuse
    assert (asked.HasField("ratio"), asked.segments[0].tokens.start, asked.segments[0].tokens.end) == (False, 1, 3)
    client.generate_once("hi")
    assert not recorder.asked.get().request.HasField("reuse")


async def test_reuse_on_asyncio(recorder):
    async with AsyncClient(recorder.address) as client:
        await client.generate_once("hi", reuse=Reuse(0.25))
    assert recorder.asked.get().request.reuse.ratio == 0.25


@pytest.mark.parametrize(("segment", "field"), [(Span(-1, 3), "tokens"), ("\udc80", "text")])
def test_a_segment_that_cannot_be_sent_is_named(client, segment, field):
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.generate("x", reuse=Reuse(segments=[segment]))
    assert caught.value.field == f"reuse.segments[0].{field}"


def test_chat_and_tokenize(recorder, client):
    recorder.pieces = [pb.GenerateResponse(text_delta="a"), pb.GenerateResponse(text_delta="b", finish_reason=1)]
    messages = [{"role": "user", "content": "hi"}]
    assert "".join(piece.text_delta for piece in client.chat(messages, max_tokens=3)) == "ab"
    asked = recorder.asked.get()
    assert [(message.role, message.content) for message in asked.messages] == [("user", "hi")]
    assert asked.sampling.max_tokens == 3
    assert client.tokenize("x") == (1, 2)
    assert recorder.asked.get().text == "x"
    assert client.tokenize(messages) == (1, 2)
    assert recorder.asked.get().conversation.messages[0].content == "hi"


def test_status_and_model(client):
    status = client.status()
    assert (status.num_waiting, status.prefill_connected, status.tokens_per_s) == (3, True, 1.5)
    info = client.model_info()
    assert (info.name, info.eos_token_ids, info.max_context_tokens, info.has_chat_template) == ("m", (2,), 9, True)


def test_calls_with_one_answer_are_tried_again(recorder, client):
    recorder.num_unavailable = 2
    assert client.model_info().name == "m"
    assert recorder.num_unavailable == 0


def test_errors_are_tandems(recorder, client):
    with pytest.raises(errors.TandemError, match="no nobody"):
        client.abort("nobody")
    with pytest.raises(errors.DeadlineError):
        list(client.generate("x", timeout_s=0.05))
    with Client(f"{recorder.address}-absent") as absent, pytest.raises(errors.NotReadyError):
        list(absent.generate("x"))


@pytest.mark.parametrize(
    ("sampling", "field"),
    [({"top_k": "many"}, "top_k"), ({"max_tokens": 2**40}, "max_tokens"), ({"stop_token_ids": [-1]}, "stop_token_ids")],
)
def test_a_value_that_no_field_can_hold_names_it(client, sampling, field):
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.generate("x", **sampling)
    assert caught.value.field == f"sampling.{field}"


@pytest.mark.parametrize(
    ("fields", "field"), [({"priority": 2**40}, "priority"), ({"reuse": Reuse("much")}, "reuse.ratio")]
)
def test_a_field_that_cannot_hold_its_value_is_named(client, fields, field):
    for begin in (lambda: client.generate("x", **fields), lambda: client.chat([], **fields)):
        with pytest.raises(errors.InvalidRequestError) as caught:
            begin()
        assert caught.value.field == field


def test_what_cannot_be_sent_is_refused_by_name(client):
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.generate("lone \udc80")
    assert caught.value.field == "text"
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.chat([{"role": "user", "content": "ok"}, {"role": "user", "content": "\ud800"}])
    assert caught.value.field == "messages[1].content"
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.generate([-1])
    assert caught.value.field == "token_ids"
    with pytest.raises(TypeError, match="temprature"):
        client.generate("x", temprature=1.0)


def test_the_public_names():
    assert sorted(tandem.client.__all__) == [
        "Access",
        "Answer",
        "AsyncClient",
        "Client",
        "ModelInfo",
        "Piece",
        "ReplicaStatus",
        "RetryPolicy",
        "Reuse",
        "SegmentUsage",
        "ServerStatus",
        "Span",
        "TlsFiles",
        "TokenLogprob",
        "Usage",
    ]
    for kind in (Client, AsyncClient):
        methods = [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
        assert methods == ["abort", "chat", "close", "generate", "generate_once", "model_info", "status", "tokenize"]


class Unsteady(pb_grpc.GatewayServiceServicer):
    """Counts up from the tokens that the client has, and cuts the first streams off after two."""

    def __init__(self, num_cuts):
        self.num_cuts = num_cuts
        self.asked = []

    def Generate(self, request, context):  # noqa: N802
        return self._pieces(request, context)

    def Chat(self, request, context):  # noqa: N802
        return (pb.ChatResponse(piece=piece) for piece in self._pieces(request, context))

    def _pieces(self, request, context):
        self.asked.append(request)
        first = len(request.resume.answers[0].token_ids) if request.resume.answers else 0
        for token in range(first, 6):
            if self.num_cuts and token == first + 2:
                self.num_cuts -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            origin = pb.Origin(seed=5, arrival_unix_ns=6, model_digest="m") if token == first else None
            yield pb.GenerateResponse(
                request_id=request.request_id, text_delta=str(token), token_ids=[token], origin=origin,
                finish_reason=int(token == 5),
            )  # fmt: skip

    def GenerateOnce(self, request, context):  # noqa: N802
        self.asked.append(request.request)
        if self.num_cuts:
            self.num_cuts -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return pb.GenerateOnceResponse(answers=[pb.Answer(text="x", usage=USAGE)])

    def GetStatus(self, request, context):  # noqa: N802
        return pb.GetStatusResponse()


@pytest.fixture
def unsteady(tmp_path):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = Unsteady(2)
    servicer.address = f"unix:{tmp_path}/u.sock"
    pb_grpc.add_GatewayServiceServicer_to_server(servicer, server)
    server.add_insecure_port(servicer.address)
    server.start()
    yield servicer
    server.stop(0).wait()


def check_taken_up(servicer, pieces):
    assert "".join(piece.text_delta for piece in pieces) == "012345"
    assert [token for piece in pieces for token in piece.token_ids] == [0, 1, 2, 3, 4, 5]
    ids = {request.request_id for request in servicer.asked}
    assert (len(servicer.asked), len(ids), ids == {""}) == (3, 1, False)
    last = servicer.asked[-1].resume
    assert (list(last.answers[0].token_ids), last.origin.seed) == ([0, 1, 2, 3], 5)


def test_a_stream_that_is_cut_off_goes_on(unsteady):
    with Client(unsteady.address, FAST) as client:
        check_taken_up(unsteady, list(client.generate("x", temperature=1.0, reuse=Reuse(0.5))))
    assert [request.reuse.ratio for request in unsteady.asked] == [0.5] * 3


async def test_a_stream_on_asyncio_goes_on(unsteady):
    async with AsyncClient(unsteady.address, FAST) as client:
        check_taken_up(unsteady, [piece async for piece in client.generate("x", temperature=1.0)])
        assert (await client.status()).num_waiting == 0


@pytest.mark.parametrize("on_asyncio", [False, True])
async def test_a_conversation_that_is_cut_off_goes_on(unsteady, on_asyncio):
    messages = [{"role": "user", "content": "x"}]
    if on_asyncio:
        async with AsyncClient(unsteady.address, FAST) as client:
            pieces = [piece async for piece in client.chat(messages, temperature=1.0)]
    else:
        with Client(unsteady.address, FAST) as blocking:
            pieces = await asyncio.to_thread(lambda: list(blocking.chat(messages, temperature=1.0)))
    check_taken_up(unsteady, pieces)


async def test_whole_answers_begin_anew(unsteady):
    with Client(unsteady.address, FAST) as client:
        client.status()
        assert client.generate_once("x")[0].text == "x"
    assert [request.HasField("resume") for request in unsteady.asked] == [False, True, True]
    unsteady.num_cuts = 2
    async with AsyncClient(unsteady.address, FAST) as client:
        await client.status()
        assert (await client.generate_once("x"))[0].text == "x"


def test_taking_up_can_be_turned_off(unsteady):
    with Client(unsteady.address, RetryPolicy(give_up_s=0)) as client, pytest.raises(errors.NotReadyError):
        list(client.generate("x"))
    assert len(unsteady.asked) == 1


def test_closing_ends_the_wait_for_a_server(unsteady):
    patient = RetryPolicy(give_up_s=1000, first_pause_s=1000, last_pause_s=1000)
    client = Client(unsteady.address, patient)
    stream = client.generate("x")
    assert [next(stream).text_delta, next(stream).text_delta] == ["0", "1"]
    closing = threading.Timer(0.1, client.close)
    closing.start()
    with pytest.raises(errors.NotReadyError, match="closed"):
        next(stream)
    closing.join()


async def test_closing_on_asyncio_is_no_cancellation_of_who_reads(recorder):
    recorder.pieces = [pb.GenerateResponse(text_delta="a")]
    client = AsyncClient(recorder.address)
    stream = client.generate("x")
    assert (await anext(stream)).text_delta == "a"
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(errors.NotReadyError, match="closed"):
        await reading


async def test_who_is_cancelled_on_asyncio_is_told_so(recorder):
    async with AsyncClient(recorder.address) as client:
        asking = asyncio.create_task(anext(client.generate("x")))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert recorder.ended.wait(20), "the server sees the cancellation"


async def test_closing_on_asyncio_ends_the_wait_for_a_server(unsteady):
    patient = RetryPolicy(give_up_s=1000, first_pause_s=1000, last_pause_s=1000)
    client = AsyncClient(unsteady.address, patient)
    stream = client.generate("x")
    assert [(await anext(stream)).text_delta for _ in "01"] == ["0", "1"]
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.1)
    await client.close()
    async with asyncio.timeout(20):
        with pytest.raises(errors.NotReadyError, match="closed"):
            await waiting
