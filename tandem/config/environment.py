"""What every service's process has in its environment, whoever starts it: `tandem up`, the benchmarks, the tests."""

from collections.abc import Mapping

SERVICE_ENVIRONMENT: Mapping[str, str] = {
    # OpenMP's threads sleep between parallel regions: one that looks for work has the core that the loop or the other
    # phase needs. Within a region the native kernels wait by themselves (`kernels/native/team.h`).
    "OMP_WAIT_POLICY": "passive",
    # grpc polls its sockets in the thread that waits for completed calls anyway, in place of a pool of threads that
    # each write and each read wakes as well: a token costs the gateway 5 to 20 % less CPU time (docs/benchmarks.md). A
    # grpc that knows these names no more says so in a line and goes on.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    "PYTHONUNBUFFERED": "1",
}
