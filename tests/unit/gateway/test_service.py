"""The API over a real server and the generated client, in front of phases that follow a script."""

import asyncio
import math

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from transformers import AutoTokenizer

from services.gateway.chat import ChatMessage
from services.gateway.service import SERVICE_NAME, add_to_server
from tandem.config.settings import GatewayConfig
from tandem.kv.contents import block_keys
from tandem.model.metadata import read_metadata
from tandem.rpc.server import ServiceHost
from tandem.rpc.stubs.common.v1 import common_pb2
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tandem.types import FinishReason, Phase, SegmentOutcome, Span
from tests.support.gateway_fakes import Rig, ScriptedPhases, settle
from tests.support.gateway_world import EOS, byte_model

CODE = grpc.StatusCode
STOP, LENGTH, ABORT = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH, common_pb2.FINISH_REASON_ABORT
MAX_MESSAGE_BYTES = 64 << 10
MAX_BUFFERED_TOKENS = 200
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
SCRIPT = "Grüße, 世界".encode()


class Server:
    """A rig behind a real server, and a stub in front of it."""

    def __init__(self, rig, host, channel, address):
        self.address = address
        self.rig = rig
        self.host = host
        self.channel = channel
        self.stub = pb_grpc.GatewayServiceStub(channel)
        self.phases = ScriptedPhases(rig, SCRIPT)


@pytest.fixture
async def server(tmp_path):
    config = GatewayConfig(max_waiting=1, max_running=2, max_n=2, max_buffered_tokens=MAX_BUFFERED_TOKENS)
    rig = await Rig(config=config, model=byte_model(4096, TEMPLATE)).up()
    host = ServiceHost([SERVICE_NAME], [f"unix:{tmp_path}/g.sock"], max_message_bytes=MAX_MESSAGE_BYTES)
    add_to_server(rig.gateway.frontend, rig.gateway.status, host.server)
    await host.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/g.sock") as channel:
        server = Server(rig, host, channel, f"unix:{tmp_path}/g.sock")
        try:
            yield server
        finally:
            await server.phases.stop()
            await host.stop(0)


def request(text="hi", **sampling):
    return pb.GenerateRequest(text=text, sampling=pb.SamplingParams(**sampling))


async def collect(call):
    return [piece async for piece in call]


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value


def detail(error, kind):
    found = kind()
    assert any(packed.Unpack(found) for packed in rpc_status.from_call(error).details)
    return found


async def until(condition):
    """Lets the loop run until the condition holds; the test's own time limit bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


async def test_an_answer_may_be_larger_than_what_is_accepted(server):
    text = "é" * (MAX_MESSAGE_BYTES // 2 - 10)
    assert len((await server.stub.Tokenize(pb.TokenizeRequest(text=text))).token_ids) == len(text.encode())


async def test_a_stream_of_whole_characters(server):
    server.phases.start()
    pieces = await collect(server.stub.Generate(request()))
    assert "".join(piece.text_delta for piece in pieces) == SCRIPT.decode()
    assert [token for piece in pieces for token in piece.token_ids] == [*SCRIPT, EOS]
    assert "\ufffd" not in "".join(piece.text_delta for piece in pieces)
    assert pieces[-1].finish_reason == STOP
    assert all(piece.finish_reason == 0 and not piece.HasField("usage") for piece in pieces[:-1])
    usage = pieces[-1].usage
    assert (usage.num_prompt_tokens, usage.num_output_tokens) == (2, len(SCRIPT) + 1)
    assert {piece.request_id for piece in pieces} == {pieces[0].request_id} != {""}


async def test_all_answers_at_once(server):
    server.phases.start()
    asked = pb.GenerateOnceRequest(request=request(n=2, max_tokens=5))
    response = await server.stub.GenerateOnce(asked)
    assert [answer.index for answer in response.answers] == [0, 1]
    assert [answer.text for answer in response.answers] == [SCRIPT[:5].decode("utf-8", "replace")] * 2
    assert all(list(answer.token_ids) == list(SCRIPT[:5]) for answer in response.answers)
    assert all(answer.finish_reason == LENGTH for answer in response.answers)


async def test_a_stop_string_over_the_wire(server):
    server.phases.start()
    asked = pb.GenerateOnceRequest(request=request(stop=["e, 世", "never"]))
    (answer,) = (await server.stub.GenerateOnce(asked)).answers
    assert (answer.text, answer.finish_reason, answer.matched_stop) == ("Grüß", STOP, "e, 世")


async def test_token_ids_and_seed_reach_the_phase(server):
    server.phases.start()
    asked = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[5, 6, 7]),
        sampling=pb.SamplingParams(seed=2**64 - 1, logit_bias={1: -3.5}, logprobs=2, temperature=0.5, max_tokens=1),
        priority=-3,
    )
    await collect(server.stub.Generate(asked))
    (spec,) = server.rig.prefill.submitted
    assert (spec.token_ids, spec.priority) == ((5, 6, 7), -3)
    assert (spec.sampling.seed, spec.sampling.logit_bias, spec.sampling.num_top_logprobs) == (2**64 - 1, {1: -3.5}, 2)
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.stop.max_tokens) == (0.5, 1.0, 1)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (pb.GenerateRequest(), "prompt"),
        (request(""), "text"),
        (pb.GenerateRequest(token_ids=pb.TokenIds()), "token_ids"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 999])), "token_ids[1]"),
        (request("x" * 4096), "text"),
        (request(max_tokens=4095), "sampling.max_tokens"),
        (request(temperature=math.nan), "sampling.temperature"),
        (request(top_p=-1.0), "sampling.top_p"),
        (request(n=3), "sampling.n"),
        (request(stop=[""]), "sampling.stop[0]"),
        (pb.GenerateRequest(text="a", request_id="\n"), "request_id"),
        (pb.GenerateRequest(text="a", reuse=pb.Reuse(ratio=math.nan)), "reuse.ratio"),
        (pb.GenerateRequest(text="a", reuse=pb.Reuse(segments=[pb.Segment()])), "reuse.segments[0]"),
        (pb.GenerateRequest(text="a", reuse=pb.Reuse(segments=[pb.Segment(text="b")])), "reuse.segments[0].text"),
    ],
)
async def test_a_bad_field_is_a_field_violation(server, asked, field):
    error = await refusal(server.stub.Generate(asked))
    assert error.code() == CODE.INVALID_ARGUMENT
    (violation,) = detail(error, error_details_pb2.BadRequest).field_violations
    assert violation.field == field
    assert violation.description
    assert server.rig.prefill.submitted == []


async def test_segments_and_what_became_of_them_go_over_the_wire(server):
    span = common_pb2.Span(start=10, end=90)
    reuse = pb.Reuse(ratio=0.5, segments=[pb.Segment(tokens=span)])
    asked = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=range(100)), reuse=reuse, sampling=pb.SamplingParams(max_tokens=1)
    )
    reader = asyncio.ensure_future(collect(server.stub.Generate(asked)))
    await until(lambda: server.rig.prefill.held)
    outcomes = (SegmentOutcome(6, 50, 24, True),)
    spec = server.rig.prefilled(65, FinishReason.LENGTH, cached=16, segments=outcomes, num_publishable_tokens=16)
    assert (spec.reuse.ratio, spec.reuse.spans) == (0.5, (Span(10, 90),))
    usage = (await reader)[-1].usage
    assert (usage.num_cached_tokens, usage.num_approximate_tokens) == (16, 50)
    told = pb.SegmentUsage(start=10, end=90, num_exact=6, num_approximate=50, num_computed=24)
    assert list(usage.segments) == [told]


async def test_a_full_queue_says_when_to_come_back(server):
    calls = [server.stub.Generate(request()) for _ in range(3)]
    readers = [asyncio.ensure_future(collect(call)) for call in calls]
    await until(lambda: server.rig.orchestrator.load.num_waiting == 1)
    error = await refusal(server.stub.Generate(request()))
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() >= 1000
    server.phases.start()
    assert all(pieces[-1].finish_reason == STOP for pieces in await asyncio.gather(*readers))


async def test_a_request_id_is_one_requests(server):
    asked = pb.GenerateRequest(text="a", request_id="twin")
    reader = asyncio.ensure_future(collect(server.stub.Generate(asked)))
    await until(lambda: server.rig.prefill.held)
    error = await refusal(server.stub.Generate(asked))
    assert (error.code(), "twin" in error.details()) == (CODE.ALREADY_EXISTS, True)
    server.phases.start()
    assert {piece.request_id for piece in await reader} == {"twin"}


async def test_a_cancelled_call_frees_everything(server):
    call = server.stub.Generate(request())
    await until(lambda: server.rig.prefill.held)
    server.rig.prefilled(ord("a"))
    assert (await call.read()).text_delta == "a"
    call.cancel()
    await until(lambda: server.rig.decode.aborted)
    await server.rig.assert_all_released()


async def test_a_cancelled_unary_call_frees_everything(server):
    call = server.stub.GenerateOnce(pb.GenerateOnceRequest(request=request()))
    await until(lambda: server.rig.prefill.held)
    call.cancel()
    await until(lambda: server.rig.prefill.aborted)
    await server.rig.assert_all_released()


async def test_a_deadline_frees_everything(server):
    error = await refusal(server.stub.Generate(request(), timeout=0.1))
    assert error.code() == CODE.DEADLINE_EXCEEDED
    await until(lambda: server.rig.prefill.aborted)
    await server.rig.assert_all_released()


async def test_a_client_that_never_reads_is_ended_and_its_blocks_freed(server):
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1)]
    async with grpc.aio.insecure_channel(server.address, options=narrow) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        silent = stub.Generate(request(max_tokens=1500))
        await until(lambda: server.rig.prefill.held)
        silent_lease = server.rig.prefilled(ord("a")).lease_id
        reading = stub.Generate(request(max_tokens=1500))
        await until(lambda: server.rig.prefill.held)
        reading_lease = server.rig.prefilled(ord("a")).lease_id
        num_read = len((await reading.read()).token_ids)
        while silent_lease not in server.rig.decode.aborted:
            for lease_id in (silent_lease, reading_lease):
                server.rig.token(ord("b"), lease_id=lease_id)
            num_read += len((await reading.read()).token_ids)
        server.rig.token(ord("c"), FinishReason.LENGTH, lease_id=reading_lease)
        assert (await reading.read()).finish_reason == LENGTH
        assert num_read > MAX_BUFFERED_TOKENS
        await server.rig.assert_all_released()
        error = await refusal(silent)
        assert error.code() == CODE.RESOURCE_EXHAUSTED
        assert "unread" in error.details()


async def test_abort_ends_the_stream_with_its_reason(server):
    reader = asyncio.ensure_future(collect(server.stub.Generate(pb.GenerateRequest(text="a", request_id="r"))))
    await until(lambda: server.rig.prefill.held)
    await server.stub.Abort(pb.AbortRequest(request_id="r"))
    assert [piece.finish_reason for piece in await reader] == [ABORT]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.stub.Abort(pb.AbortRequest(request_id="r"))
    assert caught.value.code() == CODE.NOT_FOUND


async def test_invalid_utf8_harms_nobody(server):
    raw = server.channel.unary_stream("/tandem.gateway.v1.GatewayService/Generate")
    error = await refusal(raw(b"\x12\x02\xff\xfe"))
    assert error.code() == CODE.INVALID_ARGUMENT
    assert "UTF-8" in error.details()
    server.phases.start()
    assert (await collect(server.stub.Generate(request())))[-1].finish_reason == STOP


async def test_a_message_over_the_limit_is_refused(server):
    error = await refusal(server.stub.Generate(request("x" * (MAX_MESSAGE_BYTES + 1))))
    assert error.code() == CODE.RESOURCE_EXHAUSTED


async def test_while_memd_was_never_there_nothing_is_taken(tmp_path):
    rig = Rig()
    host = ServiceHost([SERVICE_NAME], [f"unix:{tmp_path}/g.sock"])
    add_to_server(rig.gateway.frontend, rig.gateway.status, host.server)
    await host.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/g.sock") as channel:
            stub = pb_grpc.GatewayServiceStub(channel)
            assert (await refusal(stub.Generate(request()))).code() == CODE.UNAVAILABLE
            assert not (await stub.GetStatus(pb.GetStatusRequest())).memd_connected
    finally:
        await host.stop(0)


async def test_a_request_waits_for_a_phase_that_is_away(server):
    server.rig.lose(Phase.PREFILL)
    reader = asyncio.ensure_future(collect(server.stub.Generate(request(max_tokens=2))))
    await until(lambda: server.rig.orchestrator.load.num_waiting)
    server.rig.connect(Phase.PREFILL)
    server.phases.start()
    assert (await reader)[-1].finish_reason == LENGTH


async def test_chat_renders_and_streams(server):
    server.phases.start()
    messages = [pb.ChatMessage(role="system", content="x"), pb.ChatMessage(role="user", content="y")]
    pieces = await collect(server.stub.Chat(pb.ChatRequest(messages=messages, request_id="c")))
    assert "".join(response.piece.text_delta for response in pieces) == SCRIPT.decode()
    assert server.rig.prefill.submitted[0].token_ids == tuple(b"s:x;u:y;")
    error = await refusal(server.stub.Chat(pb.ChatRequest()))
    assert detail(error, error_details_pb2.BadRequest).field_violations[0].field == "messages"


async def test_tokenize(server):
    answer = await server.stub.Tokenize(pb.TokenizeRequest(text="ab"))
    assert list(answer.token_ids) == [97, 98]
    conversation = pb.ChatConversation(messages=[pb.ChatMessage(role="user", content="ab")])
    answer = await server.stub.Tokenize(pb.TokenizeRequest(conversation=conversation))
    assert bytes(answer.token_ids) == b"u:ab;"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.stub.Tokenize(pb.TokenizeRequest())
    assert caught.value.code() == CODE.INVALID_ARGUMENT


async def test_the_keys_of_a_prompt_are_those_that_its_phases_get(server):
    where = await server.stub.GetCacheKeys(
        pb.GetCacheKeysRequest(token_ids=pb.TokenIds(ids=range(40)), cache_salt="us")
    )
    call = server.stub.Generate(pb.GenerateRequest(text="hi", cache_salt="us"))
    async with asyncio.timeout(20):
        while not server.rig.prefill.held:
            await asyncio.sleep(0.001)
    assert {spec.cache_namespace for spec in server.rig.prefill.held.values()} == {where.namespace}
    call.cancel()
    assert tuple(where.keys) == block_keys(where.namespace, range(40), 16)
    other = await server.stub.GetCacheKeys(pb.GetCacheKeysRequest(cache_salt="them"))
    assert (other.namespace != where.namespace, list(other.keys)) == (True, [])


async def test_model_info_and_status(server):
    info = await server.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.name, info.architecture, info.dtype) == ("bytes", "llama", "float32")
    assert info.max_context_tokens == 96 * 16, "the pool is smaller than the model's context"
    assert (info.has_chat_template, list(info.eos_token_ids)) == (True, [EOS])
    server.phases.start()
    await collect(server.stub.Generate(request(max_tokens=3)))
    status = await server.stub.GetStatus(pb.GetStatusRequest())
    assert (status.num_requests_total, status.num_output_tokens_total) == (1, 3)
    assert (status.prefill_connected, status.decode_connected, status.memd_connected) == (True, True, True)
    assert (status.num_waiting, status.num_prefilling, status.num_decoding) == (0, 0, 0)
    assert [(each.name, each.state, each.ready) for each in status.replicas] == [("/run", "joined", True)]


async def test_health_and_reflection(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    asked = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
    assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    server.host.set_serving(True)
    await settle()
    assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = [service.name async for answer in call for service in answer.list_services_response.service]
    assert SERVICE_NAME in names


async def test_the_real_models_prompts_are_those_of_transformers(default_model_path):
    theirs = AutoTokenizer.from_pretrained(default_model_path.parent, gguf_file=default_model_path.name)
    rig = await Rig(model=read_metadata(str(default_model_path), default_model_path.parent)).up()
    conversation = [{"role": "user", "content": "Wie geht's?  ☃ <b>"}, {"role": "assistant", "content": "Gut."}]
    conversation.append({"role": "user", "content": "Und\n\ndir 123?"})
    expected = theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    messages = [ChatMessage(turn["role"], turn["content"]) for turn in conversation]
    assert await rig.gateway.frontend.tokenize_chat(messages) == expected
