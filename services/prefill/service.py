"""The prefill phase's gRPC surface: translates, nothing else."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from tandem.phase.door import Door
from tandem.rpc.codecs import commands_from_proto, prefill_result_to_proto
from tandem.rpc.stubs.prefill.v1 import prefill_pb2, prefill_pb2_grpc
from tandem.types import PrefillResult

SERVICE_NAME: str = prefill_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name


class PrefillServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """One stream a gateway."""

    def __init__(self, door: Door[PrefillResult]) -> None:
        self._door = door

    async def Run(  # noqa: N802 - the stub's name
        self,
        request_iterator: AsyncIterator[prefill_pb2.RunRequest],
        context: "grpc.aio.ServicerContext[prefill_pb2.RunRequest, prefill_pb2.RunResponse]",
    ) -> AsyncIterator[prefill_pb2.RunResponse]:
        """Commands in, one message a step out."""
        commands = (command async for request in request_iterator for command in commands_from_proto(request))
        async with aclosing(self._door.converse(commands)) as results:
            async for result in results:
                yield prefill_result_to_proto(result)


def register(door: Door[PrefillResult], server: grpc.aio.Server) -> None:
    """Adds the servicer."""
    prefill_pb2_grpc.add_PrefillServiceServicer_to_server(PrefillServicer(door), server)
