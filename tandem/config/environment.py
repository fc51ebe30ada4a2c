"""What every service's process has in its environment, whoever starts it: `tandem up`, the benchmarks, the tests."""

from collections.abc import Mapping

_EVERY_SERVICE = {
    "OMP_WAIT_POLICY": "passive",  # spinning barriers of two phases on shared cores collapse
    "PYTHONUNBUFFERED": "1",
}
_COLOCATED = {"GOMP_SPINCOUNT": "200000"}  # the cores are its own: waking for each barrier costs a quarter of a step


def environment_of(service: str) -> Mapping[str, str]:
    """What a service's process has in its environment."""
    return {**_EVERY_SERVICE, **(_COLOCATED if service == "colocated" else {})}
