"""docker-compose.gpu.yml over docker-compose.yml, as the engine's own reader merges them where it is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tandem.config.settings import MODES

ROOT = Path(__file__).resolve().parents[3]
FILES = [ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"]
PHASES = ("prefill", "decode")


@pytest.fixture(scope="module")
def merged() -> dict:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed: what merges the two files is its reader")
    flags = [word for file in FILES for word in ("-f", str(file))]
    done = subprocess.run([program, *flags, "config"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def targets(service: dict) -> list[str]:
    return [volume.split(":")[1] if isinstance(volume, str) else volume["target"] for volume in service["volumes"]]


def test_the_daemon_joins_the_five_services_and_the_keeper(merged):
    assert set(merged["services"]) == {*MODES["semi-pd"], "keeper", "mps"}


def test_all_are_of_one_image_with_a_cuda_build_of_torch(merged):
    for service in merged["services"].values():
        assert service["image"] == "tandem:gpu"
        assert service["build"]["args"] | {"TORCH_BUILD": "cu130", "EXTRAS": "cuda"} == service["build"]["args"]


def test_the_gpu_is_for_those_who_use_it(merged):
    with_gpu = {name for name, service in merged["services"].items() if "devices" in json.dumps(service.get("deploy"))}
    assert with_gpu == {"mps", "memd", *PHASES}
    (device,) = merged["services"]["memd"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and {"gpu", "compute"} <= set(device["capabilities"])


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_meets_the_daemon(merged, phase):
    daemon, service = merged["services"]["mps"], merged["services"][phase]
    pipes = "CUDA_MPS_PIPE_DIRECTORY"
    assert service["environment"][pipes] == daemon["environment"][pipes]
    assert service["environment"][pipes] in targets(service) and service["environment"][pipes] in targets(daemon)
    assert (service["ipc"], service["pid"]) == ("service:mps", "service:mps")
    assert service["depends_on"]["mps"] == {"condition": "service_healthy"}
    assert service["depends_on"]["memd"] == {"condition": "service_healthy"}


def test_memd_is_no_client(merged):
    memd = merged["services"]["memd"]
    assert memd["environment"]["CUDA_MPS_PIPE_DIRECTORY"] == "/nonexistent"
    assert "ipc" not in memd
    assert merged["services"]["mps"]["environment"]["CUDA_MPS_PIPE_DIRECTORY"] not in targets(memd)


@pytest.mark.parametrize("phase", PHASES)
def test_triton_has_a_place_that_libraries_can_be_loaded_from(merged, phase):
    service = merged["services"][phase]
    assert f"{service['environment']['TRITON_CACHE_DIR']}:size=512m,exec" in service["tmpfs"]
    assert "/tmp:size=64m" in service["tmpfs"]


@pytest.mark.parametrize("service", [*MODES["semi-pd"], "keeper", "mps"])
def test_each_is_as_confined_as_without_a_gpu(merged, service):
    definition = merged["services"][service]
    assert definition["read_only"] and definition["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in definition["security_opt"]
    assert definition["mem_limit"] and definition["pids_limit"]
    assert ("network_mode" in definition) == (service != "gateway")


def test_the_daemon_outlives_the_phases_drain(merged):
    def grace_s(service: str) -> float:
        text = merged["services"][service]["stop_grace_period"]
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text).groups()
        return 60 * int(minutes or 0) + int(seconds or 0)

    assert grace_s("mps") > grace_s("prefill")


def test_the_volumes_are_the_images_users(merged):
    uid = re.search(r"ARG TANDEM_UID=(\d+)", (ROOT / "deploy/Dockerfile").read_text())[1]
    for volume in ("run", "mps"):
        assert {f"uid={uid}", f"gid={uid}", "mode=0700"} <= set(
            merged["volumes"][volume]["driver_opts"]["o"].split(",")
        )


def test_the_dockerfile_takes_what_the_file_says():
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    given = yaml.safe_load(FILES[1].read_text())["x-image"]["build"]["args"]
    assert all(f"\nARG {argument}=" in dockerfile for argument in given)
