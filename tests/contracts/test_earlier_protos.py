"""Services and clients of different releases speak to each other: protos only grow, and what is new may be missing.

``protos/*.binpb`` are descriptors of earlier protos: ``first`` of the first five services, ``replicas`` of the
gateway over several of them. A release leaves its own there:

    python -m grpc_tools.protoc -Iprotos --include_imports --descriptor_set_out=tests/contracts/protos/NAME.binpb \
        $(cd protos && find tandem -name "*.proto")
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from services.gateway.service import SERVICE_NAME, add_to_server
from tandem.kv.store import CopySource, HolderStatistics, KeyedBlock, SequenceLease, SequenceUpdate, StorageStatistics
from tandem.partition.status import PhaseHello
from tandem.rpc import codecs, controller_codecs, memd_codecs, stubs
from tandem.rpc.server import ServiceHost
from tandem.rpc.stubs.decode.v1 import decode_pb2
from tandem.rpc.stubs.prefill.v1 import prefill_pb2
from tandem.types import (
    Block,
    DecodeResult,
    Fingerprint,
    FinishReason,
    Phase,
    Prefilled,
    PrefillResult,
    SamplingSpec,
    SegmentOutcome,
    SegmentReuse,
    SequenceOutput,
    SequenceSpec,
    Span,
    Split,
    StepStatistics,
    StopSpec,
    Submit,
    TokenLogprobs,
)
from tests.support.gateway_fakes import Rig, ScriptedPhases
from tests.support.gateway_world import byte_model

EARLIER = {path.stem: path for path in Path(__file__).with_name("protos").glob("*.binpb")}
ENUMS_OF_VALUES_THAT_ARE_SENT_UNASKED = ("tandem.common.v1.FinishReason", "tandem.common.v1.DropReason")


def earlier_files(name: str) -> FileDescriptorSet:
    return FileDescriptorSet.FromString(EARLIER[name].read_bytes())


def todays_files() -> Iterator[FileDescriptorProto]:
    for module in pkgutil.walk_packages(stubs.__path__, f"{stubs.__name__}."):
        if module.name.endswith("_pb2"):
            file = FileDescriptorProto()
            importlib.import_module(module.name).DESCRIPTOR.CopyToProto(file)
            yield file


def wire_facts(files: Iterator[FileDescriptorProto] | Any) -> dict[tuple[str, Any], Any]:
    """All on which two peers must agree, by what it is about."""
    facts: dict[tuple[str, Any], Any] = {}
    for file in (file for file in files if file.package.startswith("tandem.")):
        for message in file.message_type:
            facts |= message_facts(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            facts |= enum_facts(f"{file.package}.{enum.name}", enum)
        for service in file.service:
            for method in service.method:
                kinds = (method.input_type, method.client_streaming, method.output_type, method.server_streaming)
                facts[f"{file.package}.{service.name}", method.name] = kinds
    return facts


def message_facts(name: str, message: DescriptorProto) -> dict[tuple[str, Any], Any]:
    facts: dict[tuple[str, Any], Any] = {}
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        facts[name, field.number] = (field.name, field.type, field.label, field.type_name, oneof)
    for nested in message.nested_type:
        facts |= message_facts(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        facts |= enum_facts(f"{name}.{enum.name}", enum)
    return facts


def enum_facts(name: str, enum: EnumDescriptorProto) -> dict[tuple[str, Any], Any]:
    return {(name, value.number): value.name for value in enum.value}


@pytest.fixture(scope="module")
def today() -> dict[tuple[str, Any], Any]:
    return wire_facts(todays_files())


@pytest.mark.parametrize("name", EARLIER)
def test_nothing_that_an_earlier_peer_knows_has_changed(name: str, today: dict[tuple[str, Any], Any]):
    earlier = wire_facts(earlier_files(name).file)
    assert {what: today.get(what) for what in earlier} == earlier


@pytest.mark.parametrize("name", EARLIER)
def test_no_earlier_peer_gets_a_reason_that_it_does_not_know(name: str, today: dict[tuple[str, Any], Any]):
    earlier = wire_facts(earlier_files(name).file)
    for enum in ENUMS_OF_VALUES_THAT_ARE_SENT_UNASKED:
        values = {number for kind, number in earlier if kind == enum}
        assert {number for kind, number in today if kind == enum} == values != set()


class EarlierPeer:
    """Knows the first protos alone."""

    def __init__(self) -> None:
        pool = descriptor_pool.DescriptorPool()
        for file in earlier_files("first").file:
            pool.Add(file)
        self._pool = pool

    def kind(self, full_name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(full_name))

    def passes_on(self, message: Message) -> Any:
        """What today's peer understands of it."""
        known = self.kind(message.DESCRIPTOR.full_name).FromString(message.SerializeToString())
        known.DiscardUnknownFields()
        return type(message).FromString(known.SerializeToString())


@pytest.fixture(scope="module")
def peer() -> EarlierPeer:
    return EarlierPeer()


SPEC = SequenceSpec(
    lease_id=7,
    request_id="a",
    token_ids=(1, 2, 3),
    num_prompt_tokens=2,
    sampling=SamplingSpec(temperature=0.5, seed=9, logit_bias={4: 1.5}, logprobs=True, num_top_logprobs=2),
    stop=StopSpec(5, 1, (2,)),
    priority=-1,
    arrival_unix_ns=10,
)
PREFILLED = Prefilled(SequenceOutput(7, 5, TokenLogprobs(-0.5), FinishReason.STOP), 1.0, 2.0, 3)
UPDATE = SequenceUpdate(7, (Block(1, 2),), 16)
STATISTICS = StorageStatistics(
    Fingerprint("digest", "float32", "float32", "layout", 16, 8, "0.1.0"),
    epoch=3,
    num_blocks=8,
    num_free_blocks=5,
    num_spare_blocks=2,
    num_leased_blocks=1,
    num_cached_blocks=0,
    num_sequences=1,
    weight_bytes=10,
    kv_bytes=20,
    holders=(HolderStatistics(1, "decode", 5, 2, 1),),
)
STEP = StepStatistics(1.5, 2, 3, 4, 5, 6)
NEWS = {
    "reuse": SegmentReuse(0.25, (Span(0, 2),), b"namespace", 1),
    "num_publishable_tokens": 1,
    "cache_namespace": b"namespace",
}


@pytest.mark.parametrize(
    ("encode", "decode", "sent", "understood"),
    [
        (codecs.command_to_prefill, codecs.command_from_proto, Submit(replace(SPEC, **NEWS)), Submit(SPEC)),
        (codecs.command_to_decode, codecs.command_from_proto, Submit(replace(SPEC, **NEWS)), Submit(SPEC)),
        (
            codecs.prefill_result_to_proto,
            codecs.prefill_result_from_proto,
            PrefillResult((replace(PREFILLED, segments=(SegmentOutcome(1, 2, 3, True),), num_publishable_tokens=4),)),
            PrefillResult((PREFILLED,)),
        ),
        (
            codecs.decode_result_to_proto,
            codecs.decode_result_from_proto,
            DecodeResult((PREFILLED.output,)),
            DecodeResult((PREFILLED.output,)),
        ),
        (
            memd_codecs.update_to_proto,
            memd_codecs.update_from_proto,
            replace(
                UPDATE,
                publish=(KeyedBlock(0, b"key", b"parent", b"namespace", (1, 2)),),
                let_go=True,
                copied_from=(Block(3, 1),),
            ),
            UPDATE,
        ),
        (
            memd_codecs.lease_to_proto,
            lambda message: memd_codecs.lease_from_proto(7, message),
            SequenceLease(7, (Block(1, 2),), 16, CopySource(Block(3, 1), 4)),
            SequenceLease(7, (Block(1, 2),), 16),
        ),
        (memd_codecs.statistics_to_proto, memd_codecs.statistics_from_proto, STATISTICS, STATISTICS),
        (
            controller_codecs.hello_to_proto,
            controller_codecs.hello_from_proto,
            PhaseHello(Phase.DECODE, 5, "whole", (Split(50, 50),), Split(50, 50)),
            PhaseHello(Phase.DECODE, 5, "whole"),
        ),
        (
            controller_codecs.step_to_proto,
            controller_codecs.step_from_proto,
            replace(STEP, num_backlog_tokens=7),
            STEP,
        ),
    ],
)
def test_what_an_earlier_service_leaves_out_means_what_it_meant(
    peer: EarlierPeer, encode: Callable[..., Any], decode: Callable[..., Any], sent: Any, understood: Any
):
    assert decode(encode(sent)) == sent
    assert decode(peer.passes_on(encode(sent))) == understood


def test_a_command_that_only_a_later_gateway_knows_is_no_error():
    later = b"\xf8\x7f\x01"  # field 2047, a number
    for kind in (prefill_pb2.RunRequest, decode_pb2.RunRequest):
        assert codecs.command_from_proto(kind.FromString(later)) is None


async def test_an_earlier_client_is_answered(peer: EarlierPeer, tmp_path: Path):
    rig = await Rig(model=byte_model(4096)).up()
    address = f"unix:{tmp_path}/g.sock"
    host = ServiceHost([SERVICE_NAME], [address])
    add_to_server(rig.gateway.frontend, rig.gateway.status, host.server)
    await host.start()
    phases = ScriptedPhases(rig, b"hello")
    phases.start()
    asked, answered = (peer.kind(f"tandem.gateway.v1.Generate{what}") for what in ("Request", "Response"))
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            generate = channel.unary_stream(f"/{SERVICE_NAME}/Generate", asked.SerializeToString, answered.FromString)
            pieces = [piece async for piece in generate(asked(text="hi"))]
    finally:
        await phases.stop()
        await host.stop(0)
    assert "".join(piece.text_delta for piece in pieces) == "hello"
    assert pieces[-1].usage.num_output_tokens == len("hello") + 1
