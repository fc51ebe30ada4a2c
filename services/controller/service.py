"""Translates between the controller's gRPC methods and `Controller`."""

from __future__ import annotations  # grpc's generic types are so in its stub files only

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.controller.controller import Controller, PhaseLink
from tandem.errors import InvalidRequestError
from tandem.partition.status import PhaseHello
from tandem.rpc.controller_codecs import (
    applied_from_proto,
    decision_to_proto,
    hello_from_proto,
    observations_from_proto,
    split_from_proto,
    status_to_proto,
    step_from_proto,
)
from tandem.rpc.history_codecs import record_to_proto
from tandem.rpc.stubs.controller.v1 import controller_pb2 as pb
from tandem.rpc.stubs.controller.v1 import controller_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ControllerService"].full_name


class ControllerService(pb_grpc.ControllerServiceServicer):
    """The gRPC face of a `Controller`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def Link(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.LinkRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.LinkResponse]:
        """Decisions down while reports come up; ends with the reports, or when a newer link takes over."""
        link = self._controller.open_link(await _read_hello(request_iterator))
        reader = asyncio.create_task(self._read_reports(link, request_iterator))
        try:
            while (decision := await link.next_decision()) is not None:
                yield decision_to_proto(decision)
        finally:
            self._controller.close_link(link)
            reader.cancel()
            (outcome,) = await asyncio.gather(reader, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    async def Observe(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ObserveRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ObserveResponse:
        """Takes observations in until the gateway ends the stream."""
        async for request in request_iterator:
            for observation in observations_from_proto(request):
                self._controller.observe(observation)
        return pb.ObserveResponse()

    async def GetStatus(  # noqa: N802
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetStatusResponse:
        """All that is known now."""
        return status_to_proto(self._controller.status())

    async def SetSplit(  # noqa: N802
        self, request: pb.SetSplitRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SetSplitResponse:
        """Fixes the split by hand."""
        decision = self._controller.fix_split(split_from_proto(request.split))
        return pb.SetSplitResponse(decision_id=decision.decision_id)

    async def GetHistory(  # noqa: N802
        self, request: pb.GetHistoryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetHistoryResponse:
        """The newest decisions."""
        return pb.GetHistoryResponse(decisions=[record_to_proto(record) for record in self._controller.history()])

    async def SetPaused(  # noqa: N802
        self, request: pb.SetPausedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SetPausedResponse:
        """Pauses or resumes the planner."""
        self._controller.set_paused(request.is_paused)
        return pb.SetPausedResponse()

    async def _read_reports(self, link: PhaseLink, reports: AsyncIterator[pb.LinkRequest]) -> None:
        try:
            async for report in reports:
                self._take(link, report)
        finally:
            link.close()

    def _take(self, link: PhaseLink, report: pb.LinkRequest) -> None:
        match report.WhichOneof("report"):
            case "step":
                self._controller.report_step(link.hello.phase, step_from_proto(report.step))
            case "steps":
                for step in report.steps.steps:
                    self._controller.report_step(link.hello.phase, step_from_proto(step))
            case "applied":
                self._controller.report_applied(link.hello.phase, applied_from_proto(report.applied))
            case _:
                raise InvalidRequestError("report", "expected step, steps or applied after the first report")


def add_to_server(controller: Controller, server: grpc.aio.Server) -> None:
    """Serves the controller's methods."""
    pb_grpc.add_ControllerServiceServicer_to_server(ControllerService(controller), server)


async def _read_hello(reports: AsyncIterator[pb.LinkRequest]) -> PhaseHello:
    async for report in reports:
        if report.HasField("hello"):
            return hello_from_proto(report.hello)
        break
    raise InvalidRequestError("hello", "the first report of a link must carry it")
