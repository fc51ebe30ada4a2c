"""What every service's process has in its environment, whoever starts it: `tandem up`, the benchmarks, the tests."""

from collections.abc import Mapping

SERVICE_ENVIRONMENT: Mapping[str, str] = {
    # OpenMP's threads sleep between parallel regions: one that looks for work has the core that the loop or the other
    # phase needs. Within a region the native kernels wait by themselves (`kernels/native/team.h`).
    "OMP_WAIT_POLICY": "passive",
    "PYTHONUNBUFFERED": "1",
}
