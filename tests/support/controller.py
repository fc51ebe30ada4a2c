"""A controller behind a real gRPC server, for tests of what talks to it."""

from prometheus_client import CollectorRegistry

from services.controller.main import make_controller
from services.controller.service import SERVICE_NAME, add_to_server
from tandem.config.settings import ControllerConfig
from tandem.rpc.server import ServiceHost


class HostedController:
    """`start` and `stop` may be called again: the next controller knows nothing of the one before."""

    def __init__(self, config: ControllerConfig) -> None:
        self.address = config.socket("controller")
        self._config = config
        self._host: ServiceHost | None = None

    async def start(self) -> None:
        self.controller = make_controller(self._config, CollectorRegistry())
        self._host = ServiceHost([SERVICE_NAME], [self.address])
        add_to_server(self.controller, self._host.server)
        await self._host.start()

    async def stop(self) -> None:
        if self._host is not None:
            await self._host.stop(0)
            self._host = None
