"""Channels from a gateway to the services of a replica."""

from collections.abc import Sequence

import grpc

UNIX_PREFIX = "unix:"


def peer_channel(
    address: str, options: Sequence[tuple[str, int]], credentials: grpc.ChannelCredentials | None
) -> grpc.aio.Channel:
    """On the running loop. `credentials` are for addresses on TCP; None: plain text."""
    if credentials is None or address.startswith(UNIX_PREFIX):
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)
