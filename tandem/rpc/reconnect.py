"""Keeping a stream to a peer that may be away: try, work, lose it, wait a little longer each time, try again."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import structlog

from tandem.rpc.cancelling import raise_if_cancelled
from tandem.rpc.status import transport_text

HANDOVER_DELAY_S = 0.01  # after a peer that ended the stream in good order: another may have its place already
FIRST_DELAY_S = 0.1
LAST_DELAY_S = 2.0
KEEPALIVE_OPTIONS = (
    # A connection over which nothing comes any more, nor its end, is given up after both; servers do the same.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # without it grpc waits a minute for any ping's answer, keepalive's too
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no bound: a stream may have nothing to say for hours
)
CONNECT_TIMEOUT_OPTION = ("grpc.min_reconnect_backoff_ms", 5_000)
"""How long one attempt to connect may take, despite the name; who refuses, or ends, does so at once.

A machine that is busy takes more than a moment to accept, and a network to answer.
"""
CHANNEL_OPTIONS = (
    # grpc's own waiting between connection attempts would otherwise grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    CONNECT_TIMEOUT_OPTION,
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_log = structlog.get_logger()


class Reconnector:
    """Runs `session` over and over until cancelled. The session calls `connected` once the peer has answered.

    Each loss of the peer is one ``peer.away`` event, each return one ``peer.connected``; failing attempts between
    them are not logged.
    """

    def __init__(self, peer: str, session: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        self.is_connected = False
        self._peer = peer
        self._session = session
        self._delay_s = FIRST_DELAY_S
        self._reported_away = False

    async def run(self) -> None:
        """Never returns; the sessions' gRPC failures mean that the peer is away."""
        while True:
            reason = await self._attempt()
            self._lost(reason)
            raise_if_cancelled()
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(max(self._delay_s * 2, FIRST_DELAY_S), LAST_DELAY_S)

    async def _attempt(self) -> str:
        try:
            await self._session(self._connected)
        except grpc.aio.AioRpcError as error:
            return transport_text(error)
        if self.is_connected:
            self._delay_s = HANDOVER_DELAY_S
        return "the peer ended the stream"

    def _connected(self) -> None:
        if self.is_connected:
            return
        self.is_connected, self._reported_away = True, False
        self._delay_s = FIRST_DELAY_S
        _log.info("peer.connected", peer=self._peer)

    def _lost(self, reason: str) -> None:
        self.is_connected = False
        if not self._reported_away:
            self._reported_away = True
            _log.warning("peer.away", peer=self._peer, reason=reason)
