"""The composition as a user runs it: up, a request through the published port, one service restarted, down."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from tandem.config.settings import MODES
from tandem.rpc.stubs.gateway.v1 import gateway_pb2 as pb
from tandem.rpc.stubs.gateway.v1 import gateway_pb2_grpc as pb_grpc
from tests.e2e.conftest import Engine
from tests.support.health import wait_until_serving
from tests.support.sockets import free_port

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

SERVING_S = 180.0
ANSWER_S = 120.0
UID = "10001"
CONTAINERS = {*MODES["semi-pd"], "keeper"}
KILL_DECODE = "import psutil; [p.kill() for p in psutil.process_iter() if p.name() == 'tandem-decode']"


@dataclass(frozen=True)
class Composition:
    """docker-compose.yml under a project name of its own, the gateway on a free port."""

    engine: Engine
    command: tuple[str, ...]
    project: str
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> str:
        settings = {
            "TANDEM_GATEWAY_PORT": str(self.port),
            "TANDEM_MEMD_DTYPE": "float32",
            "TANDEM_MEMD_KV_BYTES": str(256 << 20),
        }
        return checked(self.engine.run([*self.command, "-p", self.project, *arguments], **settings))

    def containers(self) -> dict[str, dict]:
        """What the engine says of each service's container, ended ones too."""
        ids = self.listed("ps", "--all")
        found = json.loads(checked(self.engine.run(["docker", "inspect", *ids]))) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def listed(self, *what: str) -> list[str]:
        """Ids of this project's objects of a kind: ``ps``, ``volume ls``, ``network ls``."""
        label = f"label=com.docker.compose.project={self.project}"
        return checked(self.engine.run(["docker", *what, "--quiet", "--filter", label])).split()

    def wait_serving(self) -> None:
        """Until the gateway says through the published port that it serves: it has memd and both phases by then."""
        wait_until_serving(self.address, "gateway", SERVING_S)

    def answer(self, prompt: str) -> tuple[str, list[int]]:
        """The greedy text and its tokens."""
        sampling = pb.SamplingParams(temperature=0.0, max_tokens=24)
        request = pb.GenerateOnceRequest(request=pb.GenerateRequest(text=prompt, sampling=sampling))
        with grpc.insecure_channel(self.address) as channel:
            (answer,) = pb_grpc.GatewayServiceStub(channel).GenerateOnce(request, timeout=ANSWER_S).answers
        return answer.text, list(answer.token_ids)


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
        running.compose("down", "--volumes", "--timeout", "30")


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


@pytest.mark.parametrize("restarted", ["decode", "memd"])
def test_a_restarted_service_changes_no_answer(composition, restarted):
    before = composition.answer("The capital of France is")
    assert before[1]
    composition.compose("restart", restarted)
    composition.wait_serving()
    assert composition.answer("The capital of France is") == before


def test_a_restarted_memd_goes_on_with_what_the_keeper_has(composition):
    assert "storage.resumed" in composition.compose("logs", "--no-color", "memd")
    assert composition.compose("logs", "--no-color", "memd").count("model.loaded") == 1
    assert "memd.attached_again" in composition.compose("logs", "--no-color", "prefill")
    assert composition.containers()["prefill"]["RestartCount"] == 0


def test_a_killed_process_is_started_again_and_changes_no_answer(composition):
    before = composition.answer("The capital of France is")
    num_restarts = composition.containers()["decode"]["RestartCount"]
    composition.compose("exec", "-T", "decode", "python", "-c", KILL_DECODE)
    composition.wait_serving()
    assert composition.answer("The capital of France is") == before
    assert composition.containers()["decode"]["RestartCount"] == num_restarts + 1


def test_down_drains_every_service_and_leaves_nothing(composition):
    composition.compose("stop")
    codes = {service: container["State"]["ExitCode"] for service, container in composition.containers().items()}
    assert codes == dict.fromkeys(CONTAINERS, 0)
    composition.compose("down", "--volumes")
    assert [composition.listed(*what) for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))] == [[]] * 3
