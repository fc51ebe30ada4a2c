"""What every service's process has in its environment, whoever starts it: `tandem up`, the benchmarks, the tests."""

from collections.abc import Mapping

SERVICE_ENVIRONMENT: Mapping[str, str] = {
    "OMP_WAIT_POLICY": "passive",  # spinning barriers of two phases on shared cores collapse
    "PYTHONUNBUFFERED": "1",
}
