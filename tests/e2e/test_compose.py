"""The composition as a user runs it: up, answers through the published port, restarts, more replicas, down."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from tandem.client import Answer, Client
from tandem.config.settings import MODES
from tests.e2e.conftest import Engine
from tests.support.health import wait_until_serving
from tests.support.sockets import free_port

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

SERVING_S = 300.0
PATIENCE_S = 300.0  # generous: the machine may be loaded
PROMPT = "The capital of France is"
NUM_STREAMED_TOKENS = 64
UID = "10001"
REPLICAS = "docker-compose.replicas.yml"
NUM_REPLICAS = 2  # beside the composition's own
PORT = ":7000"  # of each: what the gateway calls it ends so
REPLICA_STOP_S = 120
BEGINNINGS = [f"{name} is a town in which there " + "was a house " * 20 for name in ("Avon", "Bath", "Cork")]
CONTAINERS = {*MODES["semi-pd"], "keeper"}
KILL_DECODE = "import psutil; [p.kill() for p in psutil.process_iter() if p.name() == 'tandem-decode']"


@dataclass(frozen=True)
class Composition:
    """docker-compose.yml, and what is laid over it, under a project name of its own, the gateway on a free port."""

    engine: Engine
    command: tuple[str, ...]
    project: str
    port: int
    files: tuple[str, ...] = ("docker-compose.yml",)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> str:
        settings = {
            "TANDEM_GATEWAY_PORT": str(self.port),
            "TANDEM_MEMD_DTYPE": "float32",
            "TANDEM_MEMD_KV_BYTES": str(256 << 20),
        }
        files = [word for file in self.files for word in ("-f", file)]
        return checked(self.engine.run([*self.command, "-p", self.project, *files, *arguments], **settings))

    def inspected(self) -> list[dict]:
        """What the engine says of each container, ended ones too."""
        ids = self.listed("ps", "--all")
        return json.loads(checked(self.engine.run(["docker", "inspect", *ids]))) if ids else []

    def containers(self) -> dict[str, dict]:
        """By service, where each has one."""
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in self.inspected()}

    def reached_at(self, ip_address: str) -> str:
        """The id of the container that has it."""
        (found,) = [
            container["Id"]
            for container in self.inspected()
            for network in container["NetworkSettings"]["Networks"].values()
            if network["IPAddress"] == ip_address
        ]
        return found

    def events(self, service: str, event: str) -> list[dict]:
        """What a service has logged under a name."""
        lines = self.compose("logs", "--no-color", service).splitlines()
        return [json.loads(line[line.index("{") :]) for line in lines if f'"event": "{event}"' in line]

    def listed(self, *what: str) -> list[str]:
        """Ids of this project's objects of a kind: ``ps``, ``volume ls``, ``network ls``."""
        label = f"label=com.docker.compose.project={self.project}"
        return checked(self.engine.run(["docker", *what, "--quiet", "--filter", label])).split()

    def wait_serving(self) -> None:
        """Until the gateway says through the published port that it serves: it has memd and both phases by then."""
        wait_until_serving(self.address, "gateway", SERVING_S)

    def answer(self, prompt: str) -> Answer:
        """A short greedy one."""
        with Client(self.address) as client:
            (answer,) = client.generate_once(prompt, max_tokens=24, temperature=0.0, timeout_s=PATIENCE_S)
        return answer

    def stream(self, prompt: str, begun: threading.Event | None = None) -> list[int]:
        """The tokens of a long greedy answer; `begun` is set when it is under way."""
        tokens: list[int] = []
        with Client(self.address) as client:
            for piece in client.generate(prompt, max_tokens=NUM_STREAMED_TOKENS, temperature=0.0, ignore_eos=True):
                tokens += piece.token_ids
                if begun is not None:
                    begun.set()
        return tokens

    def stream_through(self, disturb: Callable[[], object], prompt: str) -> list[int]:
        """The tokens of a stream that is disturbed when it has begun."""
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(self.stream, prompt, begun)
            assert begun.wait(PATIENCE_S)
            disturb()
            return under_way.result(PATIENCE_S)


@pytest.fixture(scope="module")
def composition(docker_engine: Engine, service_image: str) -> Iterator[Composition]:
    """All five and the keeper up and serving; the end removes every container and the volume."""
    project = f"tandem-test-{os.getpid()}"
    running = Composition(docker_engine, compose_command(docker_engine), project, free_port())
    try:
        running.compose("up", "--detach", "--no-build")
        running.wait_serving()
        yield running
    except BaseException:
        print(running.compose("logs", "--no-color", "--tail=40"))  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        with_replicas(running).compose("down", "--volumes", "--timeout", "30")


def with_replicas(composition: Composition) -> Composition:
    return replace(composition, files=(*composition.files, REPLICAS))


@pytest.fixture(scope="module")
def grown(composition) -> Composition:
    """The same composition with more replicas, which its new gateway has found."""
    grown = with_replicas(composition)
    grown.compose("up", "--detach", "--no-build", "--scale", f"replica={NUM_REPLICAS}")
    grown.wait_serving()
    deadline_s = time.monotonic() + SERVING_S
    while len({entry["replica"] for entry in grown.events("gateway", "replica.ready")}) <= NUM_REPLICAS:
        assert time.monotonic() < deadline_s, "the gateway did not find the replicas"
        time.sleep(0.5)
    return grown


def compose_command(engine: Engine) -> tuple[str, ...]:
    """The plugin where there is one, else the older program of its own."""
    if engine.run(["docker", "compose", "version"]).returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    pytest.skip("neither `docker compose` nor docker-compose on this machine")


def checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_container_is_confined(composition):
    containers = composition.containers()
    assert set(containers) == CONTAINERS
    for service, container in containers.items():
        host = container["HostConfig"]
        assert container["Config"]["User"] == UID, service
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], service
        assert host["Memory"] > 0 and host["PidsLimit"] > 0, service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service


def test_what_the_gateway_waited_for_is_healthy(composition):
    healthy = {
        service: container["State"]["Health"]["Status"]
        for service, container in composition.containers().items()
        if service != "keeper"
    }
    del healthy["gateway"]  # its own first check may still be to come
    assert set(healthy.values()) == {"healthy"}, healthy


@pytest.fixture(scope="module")
def undisturbed(composition) -> list[int]:
    tokens = composition.stream(PROMPT)
    assert len(tokens) == NUM_STREAMED_TOKENS
    return tokens


def begins(tokens: list[int], answer: Answer) -> bool:
    return len(answer.token_ids) > 0 and tokens[: len(answer.token_ids)] == list(answer.token_ids)


@pytest.mark.parametrize("restarted", ["prefill", "decode", "controller", "memd", "gateway"])
def test_a_service_drains_before_its_restart_and_no_stream_notices(composition, undisturbed, restarted):
    assert composition.events(restarted, "service.stopped") == []
    assert composition.stream_through(lambda: composition.compose("restart", restarted), PROMPT) == undisturbed
    composition.wait_serving()
    assert [ended["status"] for ended in composition.events(restarted, "service.stopped")] == [0]
    assert begins(undisturbed, composition.answer(PROMPT))


def test_a_restarted_memd_goes_on_with_what_the_keeper_has(composition):
    assert composition.events("memd", "storage.resumed")
    assert len(composition.events("memd", "model.loaded")) == 1
    assert composition.events("prefill", "memd.attached_again")
    assert composition.containers()["prefill"]["RestartCount"] == 0


def test_a_killed_process_is_started_again_and_no_stream_notices(composition, undisturbed):
    num_restarts = composition.containers()["decode"]["RestartCount"]
    killing = ("exec", "-T", "decode", "python", "-c", KILL_DECODE)
    assert composition.stream_through(lambda: composition.compose(*killing), PROMPT) == undisturbed
    composition.wait_serving()
    assert begins(undisturbed, composition.answer(PROMPT))
    assert composition.containers()["decode"]["RestartCount"] == num_restarts + 1


@pytest.fixture(scope="module")
def homes(grown) -> list[str]:
    """Where the gateway has sent the first prompt of each beginning."""
    for beginning in BEGINNINGS:
        grown.answer(f"{beginning}. First")
    return [entry["replica"] for entry in grown.events("gateway", "request.routed")]


def test_prompts_of_one_beginning_go_where_its_kv_is(grown, homes):
    assert len(set(homes)) > 1
    cached = [grown.answer(f"{beginning}. Then").usage.num_cached_tokens for beginning in BEGINNINGS]
    routed = [entry["replica"] for entry in grown.events("gateway", "request.routed")][len(homes) :]
    at_home = [now == home and num > 0 for now, home, num in zip(routed, homes, cached, strict=True)]
    assert at_home.count(True) >= len(homes) - 1, "one in a hundred is sent elsewhere to try it"


def test_a_replica_that_is_stopped_leaves_its_streams_to_the_others(grown, homes):
    beginning, home = next(pair for pair in zip(BEGINNINGS, homes, strict=True) if pair[1].endswith(PORT))
    undisturbed = grown.stream(beginning)
    container = grown.reached_at(home.removesuffix(PORT))
    stop = ["docker", "stop", "--time", str(REPLICA_STOP_S), container]
    assert grown.stream_through(lambda: checked(grown.engine.run(stop)), beginning) == undisturbed
    assert home in {entry["replica"] for entry in grown.events("gateway", "replica.not_ready")}
    assert begins(undisturbed, grown.answer(beginning))


def test_down_drains_every_service_and_leaves_nothing(grown):
    grown.compose("stop")
    codes = {container["Name"]: container["State"]["ExitCode"] for container in grown.inspected()}
    assert len(codes) == len(CONTAINERS) + NUM_REPLICAS
    assert set(codes.values()) == {0}, codes
    grown.compose("down", "--volumes")
    assert [grown.listed(*what) for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))] == [[]] * 3
