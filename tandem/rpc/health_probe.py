"""Whether a service serves, as an exit status: ``python -m tandem.rpc.health_probe ADDRESS SERVICE_NAME [HANG_S]``.

For container health checks, which run a command in the service's own container. 0: SERVING; 1: anything else,
with the reason on standard output. With HANG_S, a service that has served and then is silent for that long, over
several probes, is ended, and its engine starts another: `tandem.rpc.vigil` says what counts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEADLINE_S = 3.0
USAGE = "usage: python -m tandem.rpc.health_probe ADDRESS SERVICE_NAME [HANG_S]"


def probe(address: str, service_name: str, deadline_s: float = DEADLINE_S) -> str:
    """The name of the service's health status, or of the gRPC status code when none came within `deadline_s`."""
    request = health_pb2.HealthCheckRequest(service=service_name)
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=deadline_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(argv: Sequence[str]) -> int:
    """The exit status; what was seen goes to standard output, where the engine keeps it."""
    if len(argv) not in (2, 3):
        sys.stdout.write(f"{USAGE}\n")
        return 1
    address, service_name, *hang_s = argv
    status = probe(address, service_name)
    sys.stdout.write(f"{status}\n")
    if hang_s:
        from tandem.rpc.probe_vigil import continue_vigil  # imports that a plain probe need not wait for

        continue_vigil(Path(address.removeprefix("unix:")), service_name, status, float(hang_s[0]))
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
