"""Several replicas behind one gateway, as plain processes, and how much each of them computes."""

import contextlib
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from bench.deployment.local import LocalServices, Settings
from bench.deployment.peers import free_port
from tandem.config.local_replicas import as_setting, replica_dir
from tandem.device.cpu.confinement import replica_cores
from tandem.errors import NotReadyError

GATEWAY = "gateway"
PROMPT_SERVICES = ("prefill", "colocated")  # of which a replica has one
COMPUTED_TOKENS = "tandem:iteration_tokens_total"
ASK_TIMEOUT_S = 10.0


def replicas_of(single: LocalServices, num_replicas: int) -> list[LocalServices]:
    """`single`, whose gateway has all of them, and as many more as it takes; each on cores of its own.

    Each one's prompt service has a metrics endpoint, for `computed_tokens`.
    """
    cores = sorted(os.sched_getaffinity(0))
    return [
        replace(
            single,
            run_dir=replica_dir(single.run_dir, number),
            services=tuple(each for each in single.services if number == 0 or each != GATEWAY),
            settings=_own_settings(single, num_replicas),
            cores=replica_cores(number, num_replicas, cores),
            processes={},
        )
        for number in range(num_replicas)
    ]


@contextlib.contextmanager
def running_together(replicas: Sequence[LocalServices]) -> Iterator[None]:
    """All serving; the block's end ends every process, the gateway's replica first."""
    with contextlib.ExitStack() as opened:
        for each in reversed(replicas):
            each.run_dir.mkdir(exist_ok=True)
            opened.callback(each.close)
            each.start()
        for each in replicas:
            each.wait_serving()
        yield


def metrics_ports(replicas: Sequence[LocalServices]) -> tuple[int, ...]:
    """Of the replicas' prompt services, in order."""
    return tuple(int(str(each.settings[_prompt_service(each)]["metrics-port"])) for each in replicas)


def computed_tokens(ports: Sequence[int]) -> tuple[int, ...]:
    """Tokens that each replica's prompt service has computed so far; a colocated one, its answers' too.

    NotReadyError when one does not say.
    """
    return tuple(_computed(port) for port in ports)


def _own_settings(single: LocalServices, num_replicas: int) -> Settings:
    gateway: Mapping[str, object] = {"replicas": as_setting(single.run_dir, num_replicas)}
    own: Settings = {GATEWAY: gateway, _prompt_service(single): {"metrics-port": free_port()}}
    names = dict.fromkeys((*single.settings, *own))
    return {name: {**single.settings.get(name, {}), **own.get(name, {})} for name in names}


def _prompt_service(replica: LocalServices) -> str:
    return next(name for name in PROMPT_SERVICES if name in replica.services)


def _computed(port: int) -> int:
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=ASK_TIMEOUT_S) as response:
            text = response.read().decode()
    except OSError as error:
        raise NotReadyError(f"{url}: {error}") from error
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    found = [sample.value for sample in samples if sample.name == COMPUTED_TOKENS]
    if not found:
        raise NotReadyError(f"{url} has no {COMPUTED_TOKENS}")
    return int(sum(found))
