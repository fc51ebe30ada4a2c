"""Clients' requests from their admission to their end, over all replicas: names, bounds, deadlines, the drain."""

import asyncio

import structlog

from services.gateway.deadlines import Deadlines
from services.gateway.patience import Patience
from services.gateway.places import WaitingPlaces
from services.gateway.replicas import ReplicaSet
from services.gateway.reporting import DoorReporter
from services.gateway.requests import Request, RequestName
from tandem.errors import DuplicateRequestError, NotFoundError, NotReadyError, TandemError

SETTLE_S = 2.0  # from the last request's end until the phases have said that they let go

_log = structlog.get_logger()


class Reception:
    """Takes requests on, and hears from the replicas what becomes of them. A `RequestWatch`."""

    def __init__(
        self,
        replicas: ReplicaSet,
        places: WaitingPlaces,
        *,
        deadlines: Deadlines,
        patience: Patience,
        reporter: DoorReporter,
    ) -> None:
        self._replicas = replicas
        self._places = places
        self._deadlines = deadlines
        self._patience = patience
        self._reporter = reporter
        self._requests: dict[RequestName, Request] = {}
        self._draining = False

    # From clients

    def admit(self, request: Request, remaining_s: float | None) -> None:
        """Takes a request on; its answers come through `request.output`.

        NotReadyError while draining or while nobody serves, DuplicateRequestError, QueueFullError, DeadlineError when
        no time is left. One that was resumed takes the place of the one that runs under its name.
        """
        self._check_name(request)
        self.check_room(request.arrival.tenant, request.arrival.resumed, request.arrival.priority)
        self._places.check_tokens(request.arrival)
        self._deadlines.set(request, remaining_s)
        self._places.add(request)
        if not request.arrival.resumed:
            self._patience.enter(request)
        self._reporter.admitted(request)
        self._requests[request.name] = request
        self._replicas.route(request).orchestrator.take_on(request)

    def check_room(self, tenant: str, resumed: bool, priority: int) -> None:
        """For one more request. NotReadyError while draining or while nobody serves, QueueFullError."""
        if self._draining:
            raise NotReadyError("the gateway is shutting down; try again soon")
        if not self._replicas.is_serving:
            raise NotReadyError("no replica serves; try again soon")
        self._places.check_room(tenant, resumed, priority)

    def cancel(self, request: Request) -> None:
        """The client has gone. Nothing happens when the request has ended."""
        self.end(request, None)

    def abort(self, request_id: str, tenant: str = "") -> None:
        """Ends a request's answers with FinishReason.ABORT. NotFoundError when none of the tenant's has that name."""
        request = self._requests.get(RequestName(tenant, request_id))
        home = None if request is None else self._replicas.home(request)
        if request is None or home is None:
            raise NotFoundError(f"request_id {request_id!r} is not running")
        home.orchestrator.abort(request)

    def end(self, request: Request, error: TandemError | None) -> None:
        """Ends what is left of a request, for its client with `error`; None when there is no client."""
        home = self._replicas.home(request)
        if home is not None:
            home.orchestrator.end(request, error)

    def refuse_overdue(self, request: Request) -> None:
        """It has waited too long for its first turn: QueueFullError for its client."""
        self.end(request, self._places.overdue())

    async def drain(self, timeout_s: float) -> None:
        """Takes on nothing more, lets what runs end for `timeout_s`, then ends the rest with NotReadyError."""
        self._draining = True
        _log.info("gateway.draining", num_requests=len(self._requests), timeout_s=timeout_s)
        for replica in self._replicas:
            replica.orchestrator.build_no_more()
        if not await self._quiet_within(timeout_s):
            for request in tuple(self._requests.values()):
                self.end(request, NotReadyError("the gateway is shutting down; send the request again"))
            await self._quiet_within(SETTLE_S)

    # From the replicas

    def sent(self, request: Request) -> None:
        """See `RequestWatch`."""
        self._places.discard(request)
        self._patience.leave(request)

    def prefilled(self, request: Request, num_computed_tokens: int) -> None:
        """See `RequestWatch`."""
        self._replicas.prefilled(request, num_computed_tokens)

    def ended(self, request: Request) -> None:
        """See `RequestWatch`."""
        if self._requests.get(request.name) is request:
            del self._requests[request.name]
            self._places.discard(request)
            self._patience.leave(request)
            self._deadlines.cancel(request)
            self._replicas.ended(request)

    def changed(self) -> None:
        """See `RequestWatch`."""
        self._patience.note_turns(self._replicas.gives_turns)
        self._reporter.load(len(self._places), len(self._requests))

    def _check_name(self, request: Request) -> None:
        name, running = request.request_id, self._requests.get(request.name)
        if running is not None and not request.arrival.resumed:
            raise DuplicateRequestError(f"request_id {name!r} is running; choose another")
        if running is not None:
            self.end(running, DuplicateRequestError(f"request_id {name!r} was resumed over another stream"))

    async def _quiet_within(self, timeout_s: float) -> bool:
        waits = [replica.orchestrator.quiet_within(timeout_s) for replica in self._replicas]
        return all(await asyncio.gather(*waits))
