"""What runs under supervisord: services, each by its replica, and the helpers beside them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tandem.config.local_replicas import replica_dir

CONF_NAME = "supervisord.conf"  # in the run directory, as `tandem up` has written it
GATEWAY = "gateway"
COLOCATED = "colocated"
KEEPER = "keeper"
WATCHDOG = "watchdog"
HELPERS = (KEEPER, WATCHDOG)  # programs that are no services
_MEMD_SECTION = re.compile(r"^\[program:(memd(?:-\d+)?)\]$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Program:
    """Of the gateway and the watchdog there is one; of all else each replica has its own."""

    service: str
    replica: int = 0

    @property
    def name(self) -> str:
        """As supervisord, the logs and the user have it: ``prefill``, of another replica ``prefill-1``."""
        return f"{self.service}-{self.replica}" if self.replica else self.service


def parse_program(name: str) -> Program:
    """What has that name."""
    service, dash, number = name.rpartition("-")
    return Program(service, int(number)) if dash and number.isdecimal() else Program(name)


def replica_dirs(run_dir: Path) -> dict[int, Path]:
    """Of the replicas that the last `tandem up` has started there, by number; of the first in any case."""
    conf = run_dir / CONF_NAME
    names = _MEMD_SECTION.findall(conf.read_text()) if conf.exists() else []
    return {number: replica_dir(run_dir, number) for number in sorted({0, *(parse_program(n).replica for n in names)})}
