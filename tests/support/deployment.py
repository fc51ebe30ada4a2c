"""The five services as real processes, for tests: started, watched, killed and restarted one by one."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from bench.deployment.local import LocalServices, Settings, run_dir, running
from tandem.config.settings import MODES, Mode

POOL = {"memd": {"kv-bytes": 16 << 20, "dtype": "float32"}}  # bfloat16 would let the batch's shape turn a near tie


@dataclass
class Deployment(LocalServices):
    """Local services that a test may end."""

    def kill(self, service: str) -> None:
        """``kill -9``, and waits for the end."""
        self.processes[service].kill()
        self.processes[service].wait()

    def terminate(self, service: str, timeout_s: float = 60.0) -> int:
        """SIGTERM; returns the exit status."""
        self.processes[service].send_signal(signal.SIGTERM)
        return self.processes[service].wait(timeout_s)

    def revive(self) -> None:
        """Starts again what has ended, and waits until all that were started are serving."""
        for service, process in self.processes.items():
            if process.poll() is not None:
                self.start(service)
        self.wait_serving(*self.processes)


@contextlib.contextmanager
def deployment(model: str, settings: Settings | None = None, mode: Mode = "semi-pd") -> Iterator[Deployment]:
    """A running deployment in a short-named directory of its own; its end ends every process."""
    with run_dir() as path:
        system = Deployment(path, model, settings or {}, MODES[mode])
        with running(system):
            yield system
