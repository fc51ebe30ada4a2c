"""The decode phase's gRPC surface: translates, nothing else."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from tandem.phase.door import Door
from tandem.rpc.codecs import commands_from_proto, decode_result_to_proto
from tandem.rpc.stubs.decode.v1 import decode_pb2, decode_pb2_grpc
from tandem.types import DecodeResult

SERVICE_NAME: str = decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name


class DecodeServicer(decode_pb2_grpc.DecodeServiceServicer):
    """One stream a gateway."""

    def __init__(self, door: Door[DecodeResult]) -> None:
        self._door = door

    async def Run(  # noqa: N802 - the stub's name
        self,
        request_iterator: AsyncIterator[decode_pb2.RunRequest],
        context: "grpc.aio.ServicerContext[decode_pb2.RunRequest, decode_pb2.RunResponse]",
    ) -> AsyncIterator[decode_pb2.RunResponse]:
        """Commands in, one message a step out."""
        commands = (command async for request in request_iterator for command in commands_from_proto(request))
        async with aclosing(self._door.converse(commands)) as results:
            async for result in results:
                yield decode_result_to_proto(result)


def register(door: Door[DecodeResult], server: grpc.aio.Server) -> None:
    """Adds the servicer."""
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(DecodeServicer(door), server)
