"""docker-compose.yml against the configuration, the protos and the image that it starts."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from tandem.cli.lifecycle import READY_TIMEOUT_S
from tandem.config.environment import SERVICE_ENVIRONMENT
from tandem.config.load import load_config
from tandem.config.settings import KEEPER_SOCKET, MODES, SERVICES, CommonConfig
from tandem.rpc.health_probe import DEADLINE_S
from tandem.rpc.names import SERVICE_NAMES
from tandem.rpc.server import LATE_S

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
each_service = pytest.mark.parametrize("service", MODES["semi-pd"])


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"\b(TANDEM_[A-Z_]+)=(\S+)", DOCKERFILE.partition("\nENV PATH")[2]))


def container_environment(service: str) -> dict[str, str]:
    """As the service sees it when the shell sets nothing."""
    own = COMPOSE["services"][service]["environment"]
    return image_environment() | {key: str(value) for key, value in own.items() if value is not None}


def in_container(service: str) -> CommonConfig:
    return load_config(service, COMPOSE["services"][service]["command"][3:], container_environment(service))


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_it_starts_the_five_services_and_memds_keeper():
    assert set(COMPOSE["services"]) == {*MODES["semi-pd"], "keeper"}


def test_the_keeper_listens_where_memd_looks_and_is_there_first():
    keeper, memd = COMPOSE["services"]["keeper"], in_container("memd")
    assert keeper["command"] == [
        "python", "-m", "services.memd.keeper", "--socket", str(memd.run_dir / KEEPER_SOCKET)
    ]  # fmt: skip
    assert keeper["volumes"] == COMPOSE["services"]["memd"]["volumes"]
    assert COMPOSE["services"]["memd"]["depends_on"] == {"keeper": {"condition": "service_started"}}


@each_service
def test_each_runs_its_own_module(service):
    command = COMPOSE["services"][service]["command"]
    assert command[:3] == ["python", "-m", f"services.{service}.main"]
    assert importlib.util.find_spec(command[2])


@each_service
def test_each_health_check_asks_the_services_own_socket_for_its_own_name(service):
    test = COMPOSE["services"][service]["healthcheck"]["test"]
    assert test[:4] == ["CMD", "python", "-m", "tandem.rpc.health_probe"]
    assert test[4:6] == [in_container(service).socket(service), SERVICE_NAMES[service]]


@each_service
def test_each_health_check_ends_what_hangs_after_the_usual_time(service):
    check = COMPOSE["services"][service]["healthcheck"]
    assert [float(test) for test in check["test"][6:]] == [in_container(service).hang_timeout_s]
    assert seconds(check["timeout"]) > DEADLINE_S


@each_service
def test_each_may_take_as_long_to_start_as_tandem_up_waits(service):
    assert seconds(COMPOSE["services"][service]["healthcheck"]["start_period"]) == READY_TIMEOUT_S


@each_service
def test_the_sockets_lie_in_the_shared_volume(service):
    assert f"run:{in_container(service).run_dir}" in COMPOSE["services"][service]["volumes"]


@each_service
def test_the_environment_names_only_known_keys(service):
    known = {
        f"TANDEM_{key.upper()}" if key in CommonConfig.model_fields else f"TANDEM_{name.upper()}_{key.upper()}"
        for name, kind in SERVICES.items()
        for key in kind.model_fields
    }
    assert set(COMPOSE["services"][service]["environment"]) <= known


@each_service
def test_the_drain_ends_before_the_engine_kills(service):
    grace_s = seconds(COMPOSE["services"][service]["stop_grace_period"])
    assert grace_s > in_container(service).drain_timeout_s + LATE_S


@pytest.mark.parametrize("service", [*MODES["semi-pd"], "keeper"])
def test_each_is_confined(service):
    definition = COMPOSE["services"][service]
    assert definition["read_only"] and definition["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in definition["security_opt"]
    assert definition["mem_limit"] and definition["pids_limit"]
    assert definition["restart"] == "unless-stopped"
    assert ("network_mode" in definition) == (service != "gateway")


def test_the_image_has_what_every_service_has_in_its_environment():
    assert all(f"{key}={value}" in DOCKERFILE for key, value in SERVICE_ENVIRONMENT.items())


def test_only_the_gateway_publishes_and_only_to_this_machine():
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    gateway = in_container("gateway")
    assert gateway.host == "0.0.0.0"
    assert published == {"gateway": [f"127.0.0.1:${{TANDEM_GATEWAY_PORT:-50051}}:{gateway.port}"]}


def test_the_volume_belongs_to_the_images_user():
    uid = re.search(r"ARG TANDEM_UID=(\d+)", DOCKERFILE)[1]
    assert {f"uid={uid}", f"gid={uid}", "mode=0700"} <= set(COMPOSE["volumes"]["run"]["driver_opts"]["o"].split(","))


def test_the_base_image_is_the_dockerfiles():
    base = re.search(r"^ARG BASE_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)[1]
    assert COMPOSE["services"]["memd"]["build"]["args"]["BASE_IMAGE"] == f"${{BASE_IMAGE:-{base}}}"


def test_all_that_is_copied_is_in_the_build_context():
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    admitted = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for source in (Path(word) for line in lines for word in line.split()):
        assert any(source.is_relative_to(path) for path in admitted), source
