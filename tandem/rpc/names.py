"""The gRPC name of each service, which is also its name in health, reflection and paths; taken from the protos."""

from collections.abc import Mapping

from tandem.rpc.stubs.controller.v1 import controller_pb2
from tandem.rpc.stubs.decode.v1 import decode_pb2
from tandem.rpc.stubs.gateway.v1 import gateway_pb2
from tandem.rpc.stubs.memd.v1 import memd_pb2
from tandem.rpc.stubs.prefill.v1 import prefill_pb2

SERVICE_NAMES: Mapping[str, str] = {
    "memd": memd_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name,
    "prefill": prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name,
    "decode": decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name,
    "controller": controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name,
    "gateway": gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name,
}
