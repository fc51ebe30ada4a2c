"""Waiting for a service as its own health service tells of it: no polling."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.rpc.names import SERVICE_NAMES


def wait_until_serving(address: str, service: str, timeout_s: float) -> None:
    """Until the service at `address`, once there is one, says SERVING of itself."""
    request = health_pb2.HealthCheckRequest(service=SERVICE_NAMES[service])
    with grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=timeout_s, wait_for_ready=True)
        assert any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in watch)
