"""docker-compose.replicas.yml over docker-compose.yml, as the engine's own reader merges them where it is installed."""

import os
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tandem.cli.deployment import Overrides, resolve
from tandem.cli.lifecycle import up
from tandem.cli.supervision import render_conf
from tandem.config.load import load_config
from tandem.config.settings import MODES, ReplicaConfig
from tandem.rpc.names import SERVICE_NAMES

ROOT = Path(__file__).resolve().parents[3]
FILES = [ROOT / "docker-compose.yml", ROOT / "docker-compose.replicas.yml"]
ORDER = ("memd", "prefill", "decode", "controller")  # of a replica's ports


@pytest.fixture(scope="module")
def merged() -> dict:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed: what merges the two files is its reader")
    flags = [word for file in FILES for word in ("-f", str(file))]
    shell = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    done = subprocess.run([program, *flags, "config"], capture_output=True, text=True, check=False, cwd=ROOT, env=shell)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def environment(service: dict) -> dict[str, str]:
    return {"TANDEM_RUN_DIR": "/run/tandem"} | {k: str(v) for k, v in service["environment"].items() if v is not None}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_replicas_join_the_five_services_and_the_keeper(merged):
    assert set(merged["services"]) == {*MODES["semi-pd"], "keeper", "replica"}
    assert merged["services"]["replica"]["image"] == merged["services"]["gateway"]["image"]


def test_the_run_directory_of_a_replica_has_room_for_all_logs():
    (run,) = (each for each in yaml.safe_load(FILES[1].read_text())["services"]["replica"]["tmpfs"] if "/run/" in each)
    conf = ConfigParser(interpolation=None)
    conf.read_string(render_conf(resolve(Overrides(has_gateway=False), {}), {}))
    programs = [conf[name] for name in conf.sections() if name.startswith("program:")]
    logs_mb = sum(
        int(program["stdout_logfile_maxbytes"].removesuffix("MB")) * (1 + int(program["stdout_logfile_backups"]))
        for program in programs
    )
    assert int(re.search(r"size=(\d+)m", run).group(1)) > logs_mb


def test_the_gateway_finds_its_own_and_all_others_where_they_listen(merged):
    gateway = load_config("gateway", (), environment(merged["services"]["gateway"]))
    own, others = gateway.replicas.split(",")
    assert own == str(gateway.run_dir)
    kind, host, first_port = others.split(":")
    assert (kind, host) == ("dns", "replica")
    told = environment(merged["services"]["replica"])
    for offset, service in enumerate(ORDER):
        config = load_config(service, (), told)
        assert isinstance(config, ReplicaConfig)
        assert port_of(config.listen) == int(first_port) + offset
        assert config.allow_plaintext


def test_nothing_but_the_gateway_reaches_a_replica(merged):
    reached = {name for name, service in merged["services"].items() if "replicas" in service.get("networks", ())}
    assert reached == {"replica", "gateway"}
    assert "default" in merged["services"]["gateway"]["networks"]
    assert merged["networks"]["replicas"]["internal"] is True
    assert "ports" not in merged["services"]["replica"]


def test_a_replica_is_confined_and_asked_by_its_own_name(merged):
    replica = merged["services"]["replica"]
    assert replica["read_only"] and replica["cap_drop"] == ["ALL"] and replica["mem_limit"] and replica["pids_limit"]
    assert replica["healthcheck"]["test"][-2:] == ["unix:/run/tandem/decode.sock", SERVICE_NAMES["decode"]]


def test_the_command_is_one_that_there_is(merged):
    command = merged["services"]["replica"]["command"]
    assert command[:2] == ["tandem", "up"]
    assert CliRunner().invoke(up, [*command[2:], "--help"]).exit_code == 0
