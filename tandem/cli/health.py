"""grpc.health.v1 of the five services."""

from collections.abc import Mapping
from enum import StrEnum

from tandem.cli.deployment import Deployment
from tandem.rpc.health_probe import probe

HEALTH_NAMES: Mapping[str, str] = {
    "memd": "tandem.memd.v1.MemoryService",
    "prefill": "tandem.prefill.v1.PrefillService",
    "decode": "tandem.decode.v1.DecodeService",
    "controller": "tandem.controller.v1.ControllerService",
    "gateway": "tandem.gateway.v1.GatewayService",
}
PROBE_TIMEOUT_S = 1.0


class Health(StrEnum):
    """What a service says of itself."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNREACHABLE = "UNREACHABLE"  # also: does not know the service


def probe_all(deployment: Deployment) -> dict[str, Health]:
    """Every service's health, by service."""
    return {service: _health(deployment.address(service), name) for service, name in HEALTH_NAMES.items()}


def _health(address: str, service_name: str) -> Health:
    status = probe(address, service_name, PROBE_TIMEOUT_S)
    return Health(status) if status in set(Health) else Health.UNREACHABLE
