"""The watchdog of a deployment: ``python -m tandem.cli.watchdog FLAGS...``, a program under the same supervisord.

It probes every service's health over its socket and ends one that hangs; supervisord starts that one again. It ends
by itself when its supervisor is gone.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import setproctitle
import structlog

from tandem.cli.programs import Program, replica_dirs
from tandem.clock import Clock, MonotonicClock
from tandem.config.load import load_config
from tandem.config.settings import CommonConfig
from tandem.errors import ConfigError
from tandem.rpc.guard import end_hung, facts_of_listener, sight_of
from tandem.rpc.names import SERVICE_NAMES
from tandem.rpc.vigil import Vigil
from tandem.telemetry.logs import configure_logging

LOOKS_A_LIMIT = 8
LONGEST_LOOK_S = 2.0
EXIT_USAGE = 2

_log = structlog.get_logger()


class Watchdog:
    """Over the sockets of each replica's run directory, whichever of them there are."""

    def __init__(self, run_dirs: Mapping[int, Path], limit_s: float, clock: Clock) -> None:
        self.look_s = min(LONGEST_LOOK_S, limit_s / LOOKS_A_LIMIT)
        self._run_dirs = run_dirs
        self._limit_s = limit_s
        self._clock = clock
        self._vigils = {Program(service, replica): Vigil() for replica in run_dirs for service in SERVICE_NAMES}

    def look(self) -> None:
        """One round."""
        for program, vigil in self._vigils.items():
            self._look(program, vigil)

    def _look(self, program: Program, vigil: Vigil) -> None:
        path = self._run_dirs[program.replica] / f"{program.service}.sock"
        sight, facts = sight_of(path, SERVICE_NAMES[program.service], self.look_s), facts_of_listener(path)
        watched = vigil.has_served
        silent_s = vigil.look(sight, facts, self._clock.now(), 2 * self.look_s)
        if vigil.has_served and not watched:
            _log.info("service.watched", watched=program.name, pid=vigil.pid)
        if facts is not None and silent_s >= self._limit_s:
            end_hung(program.name, facts.pid, silent_s, os.environ)


def main() -> int:
    """Looks until its parent is another; the exit status."""
    try:
        config: CommonConfig = load_config("gateway", sys.argv[1:], os.environ)
    except ConfigError as error:
        sys.stderr.write(f"tandem-watchdog: {error}\n")
        return EXIT_USAGE
    configure_logging("watchdog", config.log_level)
    setproctitle.setproctitle("tandem-watchdog")
    parent_pid = os.getppid()
    watchdog = Watchdog(replica_dirs(config.run_dir), config.hang_timeout_s, MonotonicClock())
    while os.getppid() == parent_pid:
        watchdog.look()
        time.sleep(watchdog.look_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
