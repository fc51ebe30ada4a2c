"""Which of the services of a replica are connected."""

from collections.abc import Callable, Sequence

import structlog

_log = structlog.get_logger()


class Peers:
    """Tells `on_change` whenever one has come or gone; at first none is there."""

    def __init__(self, replica: str, names: Sequence[str], on_change: Callable[[], None]) -> None:
        self._replica = replica
        self._connected = dict.fromkeys(names, False)
        self._on_change = on_change

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
            _log.info("replica.ready" if self.all_connected else "replica.not_ready", replica=self._replica, away=away)
        self._on_change()
