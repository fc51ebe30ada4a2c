"""The system that is asked: one of Tandem's own kinds, whose answers say what was reused."""

import contextlib
from collections.abc import Iterator

from bench.deployment.open import PEER_KINDS, DeploymentKind, DeploymentSpec, Target, parse_deployment
from bench.reuse.asking import Ask, asker
from tandem.clock import MonotonicClock
from tandem.errors import ConfigError
from tandem.kv.store import StorageStatistics
from tandem.rpc.gateway_client import GatewayClient
from tandem.rpc.memd_client import MemdClient


def parse_tandem(text: str) -> DeploymentSpec:
    """ConfigError: another server, which has no salts and may not say what it reused."""
    spec = parse_deployment(text)
    if spec.kind in PEER_KINDS or spec.kind is DeploymentKind.OPENAI:
        raise ConfigError("deployment", f"{text!r} is no Tandem; reuse is measured by salts that only Tandem has")
    return spec


def parse_local_tandem(text: str) -> DeploymentSpec:
    """ConfigError: as of `parse_tandem`, or one that runs already, whose memd nobody here can ask."""
    spec = parse_tandem(text)
    if spec.kind is DeploymentKind.AT:
        raise ConfigError("deployment", f"{text!r}: its pool is not known and not empty; name one that is started here")
    if spec.num_replicas > 1:
        raise ConfigError("deployment", f"{text!r}: the replays know one pool; name one without replicas")
    return spec


@contextlib.contextmanager
def asking(target: Target) -> Iterator[Ask]:
    """A connection of one user."""
    client = GatewayClient(target.endpoint.address)
    try:
        yield asker(client, MonotonicClock())
    finally:
        client.close()


async def pool_of(target: Target) -> StorageStatistics:
    """Of a deployment that was started here, as it is now."""
    client = MemdClient(target.memd)
    try:
        return await client.statistics()
    finally:
        await client.close()
