"""A deployment that tests share; a Docker engine and the image of the services, what is missing is said in the skip."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tandem.config.settings import default_cache_dir
from tests.support.deployment import POOL, Deployment, deployment

ROOT = Path(__file__).resolve().parents[2]
REGISTRY_BASE = "python:3.12-slim-bookworm"
LOCAL_BASE = "tandem-base:bookworm"
ENGINE_START_S = 60.0


@pytest.fixture(scope="session")
def _started(tiny_model_dir: Callable[[str], Path]) -> Iterator[Deployment]:
    with deployment(str(tiny_model_dir("llama")), POOL) as services:
        yield services


@pytest.fixture
def system(_started: Deployment) -> Deployment:
    """Both phases apart with a tiny model and room for all, running, whatever the test before has ended."""
    _started.revive()
    return _started


@dataclass(frozen=True)
class Engine:
    """A running Docker engine, its clients reached with `environ`."""

    environ: dict[str, str]

    def run(self, command: Sequence[str], **settings: str) -> subprocess.CompletedProcess[str]:
        """A command in the repository's root that talks to the engine."""
        environ = self.environ | settings
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    def answers(self) -> bool:
        return self.run(["docker", "version"]).returncode == 0

    def has_image(self, image: str) -> bool:
        return self.run(["docker", "image", "inspect", image]).returncode == 0


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """The engine that this user reaches, or one started for the tests. Images stay in its cache between runs."""
    if not shutil.which("docker"):
        pytest.skip("no docker client on this machine")
    engine = Engine(client_environ())
    if engine.answers():
        yield engine
        return
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        pytest.skip("no Docker engine answers, and starting one needs root and dockerd")
    with started_engine(default_cache_dir() / "test-engine") as engine:
        yield engine


@pytest.fixture(scope="session")
def service_image(docker_engine: Engine) -> str:
    """The image that docker-compose.yml starts, built from this tree."""
    base = os.environ.get("BASE_IMAGE") or base_image(docker_engine)
    built = docker_engine.run(["deploy/build.sh", "tandem:local"], BASE_IMAGE=base)
    skip_if_unavailable(built)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return "tandem:local"


def client_environ() -> dict[str, str]:
    """This process's environment without Tandem's keys: a test's containers start from the defaults."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}


def base_image(engine: Engine) -> str:
    """The Dockerfile's own base where the engine holds it, else one made on this machine."""
    if engine.has_image(REGISTRY_BASE):
        return REGISTRY_BASE
    made = engine.run(["deploy/local-base.sh", LOCAL_BASE])
    skip_if_unavailable(made)
    assert made.returncode == 0, made.stderr[-4000:]
    return LOCAL_BASE


def skip_if_unavailable(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode == os.EX_UNAVAILABLE:
        pytest.skip(done.stderr.strip().splitlines()[-1])


@contextlib.contextmanager
def started_engine(data_dir: Path) -> Iterator[Engine]:
    """dockerd with its images in `data_dir`, which one test run has at a time; the end of the block ends it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    run_dir = Path(tempfile.mkdtemp(prefix="tdm"))
    with (data_dir / "lock").open("w") as lock, (run_dir / "log").open("wb") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = Engine({**client_environ(), "DOCKER_HOST": f"unix://{run_dir}/docker.sock"})
        command = ["dockerd", "--host", engine.environ["DOCKER_HOST"], "--pidfile", f"{data_dir}/pid"]
        command += ["--data-root", f"{data_dir}/data", "--exec-root", f"{run_dir}/exec", "--bridge", "none"]
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_engine(engine, daemon, run_dir / "log")
            remove_containers(engine)
            yield engine
        finally:
            daemon.terminate()
            daemon.wait()
            for leftover in run_dir.glob("exec/netns/*"):  # dockerd leaves the host's namespace mounted
                subprocess.run(["umount", leftover], check=False)
            shutil.rmtree(run_dir, ignore_errors=True)


def wait_for_engine(engine: Engine, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + ENGINE_START_S
    while not engine.answers():
        if daemon.poll() is not None or time.monotonic() > deadline:
            pytest.skip(f"dockerd does not start here: {log.read_text().strip().splitlines()[-1]}")
        time.sleep(0.2)


def remove_containers(engine: Engine) -> None:
    """Those of a test run that was killed: the engine has started them again."""
    ids = engine.run(["docker", "ps", "--all", "--quiet"]).stdout.split()
    if ids:
        engine.run(["docker", "rm", "--force", "--volumes", *ids])
