"""When a phase's process begins to answer, and to whom it speaks from then on."""

from collections.abc import Callable
from typing import Protocol

from tandem.phase.crew import Crew
from tandem.phase.stewardship import Role
from tandem.rpc.server import ServiceHost
from tandem.telemetry.metrics import MetricsServer


class Link(Protocol):
    """The controller's, of which a phase has one."""

    async def start(self) -> None:
        """Begins to connect."""
        ...


class Opening:
    """A first process answers at once, so that its health can be asked for while it waits for memd.

    A spare one keeps still until it is ready. Then it takes the place of the one that serves, and the metrics' port
    when that has ended.
    """

    def __init__(
        self, role: Role, host: ServiceHost, link: Link, start_metrics: Callable[[], MetricsServer], crew: Crew
    ) -> None:
        """`crew` waits for the end of the process before."""
        self.host = host
        self._role = role
        self._crew = crew
        self._link = link
        self._start_metrics = start_metrics
        self._metrics_server: MetricsServer | None = None

    async def at_start(self) -> None:
        """ConfigError: an address in use."""
        if self._role is Role.FIRST:
            self._metrics_server = self._start_metrics()
            await self._open()

    async def when_ready(self) -> None:
        """All that a step needs is there."""
        if self._role is Role.SPARE:
            await self._open()
            self._crew.spawn(self._inherit())

    def close(self) -> None:
        """Ends what `ServiceHost.stop` and the link's end do not."""
        if self._metrics_server is not None:
            self._metrics_server.close()

    async def _open(self) -> None:
        await self.host.start()
        await self._link.start()

    async def _inherit(self) -> None:
        await self.host.settled()
        self._metrics_server = self._start_metrics()
