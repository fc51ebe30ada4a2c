"""grpc.health.v1 of the services."""

from enum import StrEnum

from tandem.cli.deployment import Deployment
from tandem.cli.programs import Program
from tandem.config.settings import sockets_of
from tandem.rpc.health_probe import probe
from tandem.rpc.names import SERVICE_NAMES

PROBE_TIMEOUT_S = 1.0


class Health(StrEnum):
    """What a service says of itself."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNREACHABLE = "UNREACHABLE"  # also: does not know the service


def probe_program(deployment: Deployment, program: Program) -> Health:
    """The worst of what the service says on each of its sockets."""
    addresses = {name: deployment.address(name, program.replica) for name in sockets_of(program.service)}
    told = {_probe(address, SERVICE_NAMES[name]) for name, address in addresses.items()}
    return next(health for health in (Health.UNREACHABLE, Health.NOT_SERVING, Health.SERVING) if health in told)


def _probe(address: str, service_name: str) -> Health:
    status = probe(address, service_name, PROBE_TIMEOUT_S)
    return Health(status) if status in set(Health) else Health.UNREACHABLE
