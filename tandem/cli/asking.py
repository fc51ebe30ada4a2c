"""What `tandem status` and `tandem top` ask of a service."""

import asyncio

from tandem.errors import NotReadyError
from tandem.kv.store import StorageStatistics
from tandem.partition.status import ControllerStatus, DecisionRecord
from tandem.rpc.controller_client import ControllerClient
from tandem.rpc.gateway_client import GatewayClient
from tandem.rpc.gateway_values import ServerStatus
from tandem.rpc.memd_client import MemdClient

ASK_TIMEOUT_S = 3.0


def ask_gateway(address: str) -> ServerStatus:
    """NotReadyError when it is away; also, or DeadlineError, when it hangs; as of the others."""
    client = GatewayClient(address)
    try:
        return client.status(ASK_TIMEOUT_S)
    finally:
        client.close()


def ask_controller(address: str) -> ControllerStatus:
    """What is in force, and what it rests on."""
    with ControllerClient(address, ASK_TIMEOUT_S) as client:
        return client.status()


def ask_history(address: str) -> tuple[DecisionRecord, ...]:
    """The newest decisions, oldest first."""
    with ControllerClient(address, ASK_TIMEOUT_S) as client:
        return client.history()


def ask_memd(address: str) -> StorageStatistics:
    """The pool."""
    return asyncio.run(_statistics(address))


async def _statistics(address: str) -> StorageStatistics:
    client = MemdClient(address)
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await client.statistics()
    except TimeoutError:
        raise NotReadyError("memd does not answer") from None
    finally:
        await client.close()
