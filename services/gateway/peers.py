"""Which of the services that the gateway needs are connected."""

from collections.abc import Callable, Sequence

import structlog

_log = structlog.get_logger()


class Peers:
    """Tells `on_ready` whenever it changes whether all peers are connected; at first none is."""

    def __init__(self, names: Sequence[str], on_ready: Callable[[bool], None]) -> None:
        self._connected = dict.fromkeys(names, False)
        self._on_ready = on_ready

    def connected(self, name: str) -> bool:
        """Whether that peer is."""
        return self._connected[name]

    @property
    def all_connected(self) -> bool:
        """Whether requests can be served now."""
        return all(self._connected.values())

    def set(self, name: str, connected: bool) -> None:
        """What the link to that peer says."""
        if self._connected[name] == connected:
            return
        was_ready = self.all_connected
        self._connected[name] = connected
        if self.all_connected != was_ready:
            away = [peer for peer, there in self._connected.items() if not there]
            _log.info("gateway.ready" if self.all_connected else "gateway.not_ready", away=away)
            self._on_ready(self.all_connected)
