"""deploy/build.sh with a stand-in for the engine that keeps the build context it is given."""

import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "deploy/build.sh"
INDEX = "https://index.invalid/simple"


@dataclass
class Build:
    """One run of the script under a pip configuration of its own."""

    folder: Path

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    def run(self, **environ: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        settings = {"PATH": f"{self.folder}:{os.environ['PATH']}", "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(
            [SCRIPT, "image:test"], env=inherited | settings | environ, capture_output=True, text=True, check=False
        )

    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().split()

    def context(self) -> dict[str, bytes]:
        with tarfile.open(self.folder / "context") as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            return {member.name: archive.extractfile(member).read() for member in members}


@pytest.fixture
def build(tmp_path):
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/context\n')
    docker.chmod(0o755)
    made = Build(tmp_path)
    made.wheels.mkdir()
    (made.wheels / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").write_bytes(b"cpu")
    (made.wheels / "torch-2.13.0-cp311-cp311-linux_x86_64.whl").write_bytes(b"cuda")
    return made


def test_pips_configuration_and_the_cpu_wheel_reach_the_build(build, tmp_path):
    ca = tmp_path / "authority.crt"
    ca.write_text("a CA")
    extra = f"{INDEX}/more file:///srv/index"
    done = build.run(PIP_INDEX_URL=INDEX, PIP_EXTRA_INDEX_URL=extra, PIP_CERT=str(ca), PIP_FIND_LINKS=str(build.wheels))
    assert done.returncode == 0, done.stderr
    context = build.context()
    assert context["deploy/pip/pip.conf"].decode().splitlines() == [
        "[global]",
        f"index-url = {INDEX}",
        f"extra-index-url = {INDEX}/more",
        "cert = /opt/pip/ca.pem",
    ]
    assert context["deploy/pip/ca.pem"] == b"a CA"
    assert [name for name in context if name.endswith(".whl")] == [
        "deploy/pip/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    ]


def test_the_context_is_what_the_image_is_made_of(build):
    assert build.run(WHEELS_DIR=str(build.wheels)).returncode == 0
    context = build.context()
    assert context["deploy/Dockerfile"] == (ROOT / "deploy/Dockerfile").read_bytes()
    assert context["tandem/errors.py"] == (ROOT / "tandem/errors.py").read_bytes()
    top = {name.partition("/")[0] for name in context}
    assert top == {"pyproject.toml", "bench", "README.md", "LICENSE", "tandem", "services", "kernels", "deploy"}


def test_arguments_of_the_build_come_from_the_environment(build):
    assert build.run(BASE_IMAGE="base:mine", TORCH_INDEX=INDEX).returncode == 0
    arguments = build.arguments()
    assert {"BASE_IMAGE=base:mine", f"TORCH_INDEX={INDEX}", "image:test"} <= set(arguments)


def test_without_a_cpu_build_of_torch_nothing_is_built(build):
    done = build.run()
    assert done.returncode == os.EX_UNAVAILABLE
    assert "set TORCH_INDEX or WHEELS_DIR" in done.stderr
    assert not (build.folder / "context").exists()


def test_a_cuda_build_of_torch_makes_the_image_for_a_gpu(build):
    (build.wheels / "torch-2.13.0+cu130-cp311-cp311-linux_x86_64.whl").write_bytes(b"cu130")
    done = build.run(WHEELS_DIR=str(build.wheels), TORCH_BUILD="cu130")
    assert done.returncode == 0, done.stderr
    wheels = [name for name in build.context() if name.endswith(".whl")]
    assert wheels == ["deploy/pip/torch-2.13.0+cu130-cp311-cp311-linux_x86_64.whl"]
    assert {"TORCH_BUILD=cu130", "EXTRAS=cuda", "PACKAGES=gcc"} <= set(build.arguments())


def test_a_cpu_image_has_no_compiler_and_no_extra(build):
    assert build.run(WHEELS_DIR=str(build.wheels)).returncode == 0
    assert "TORCH_BUILD=cpu" in build.arguments()
    assert not any(argument.startswith(("EXTRAS", "PACKAGES")) for argument in build.arguments())
