import os
import stat

import pytest
from click.testing import CliRunner

from tandem.cli.deployment import Overrides, gateway_address, make_run_dir, resolve
from tandem.cli.lifecycle import up
from tandem.cli.programs import Program, parse_program, replica_dirs
from tandem.cli.supervision import render_conf
from tandem.config.load import load_config
from tandem.errors import ConfigError


def test_flags_make_every_path_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tandem.toml").write_text('[common]\nmodel = "models/tiny"\ncache_dir = "cache"\n')
    deployment = resolve(Overrides(config_file=os.path.relpath("tandem.toml")), {"TANDEM_RUN_DIR": "run"})
    assert deployment.flags("memd") == [
        "--config", str(tmp_path / "tandem.toml"),
        "--run-dir", str(tmp_path / "run"),
        "--cache-dir", str(tmp_path / "cache"),
        "--model", str(tmp_path / "models/tiny"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [("default", "default"), ("random:c.json", "random:{cwd}/c.json"), ("/m.gguf", "/m.gguf"), ("m", "{cwd}/m")],
)
def test_the_model_is_found_from_any_folder(tmp_path, monkeypatch, model, expected):
    monkeypatch.chdir(tmp_path)
    deployment = resolve(Overrides(run_dir=tmp_path, model=model), {})
    assert deployment.model == expected.format(cwd=tmp_path)


def test_the_configuration_file_of_the_environment_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.toml").write_text("[gateway]\nport = 4321\n")
    deployment = resolve(Overrides(run_dir=tmp_path), {"TANDEM_CONFIG": "t.toml"})
    assert deployment.gateway.port == 4321
    assert deployment.flags("decode")[:2] == ["--config", str(tmp_path / "t.toml")]


def test_only_the_gateway_is_given_the_port(tmp_path):
    deployment = resolve(Overrides(run_dir=tmp_path, port=0), {"TANDEM_GATEWAY_PORT": "7"})
    assert deployment.gateway.port == 0
    assert deployment.flags("gateway")[-2:] == ["--port", "0"]
    assert "--port" not in deployment.flags("memd")


def test_the_gateway_is_told_when_both_phases_are_one_process(tmp_path):
    deployment = resolve(Overrides(run_dir=tmp_path, mode="colocated"), {})
    assert load_config("gateway", deployment.flags("gateway"), {}).mode == "colocated"


def test_a_bad_key_of_any_service_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"memd\.block_size"):
        resolve(Overrides(run_dir=tmp_path), {"TANDEM_MEMD_BLOCK_SIZE": "0"})


@pytest.mark.parametrize("name", ["a%b", "a#b", "x" * 100])
def test_a_run_dir_that_sockets_cannot_lie_in_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="run_dir"):
        resolve(Overrides(run_dir=tmp_path / name), {})


def test_the_run_dir_is_closed_to_others(tmp_path):
    run_dir = tmp_path / "run dir"
    run_dir.mkdir(mode=0o755)
    make_run_dir(run_dir)
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    assert (run_dir / "logs").is_dir()


def test_a_file_in_the_place_of_the_run_dir_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="cannot make"):
        make_run_dir(tmp_path / "run")


def test_the_gateway_is_reached_by_its_socket_else_by_its_port(tmp_path):
    deployment = resolve(Overrides(run_dir=tmp_path, port=1234), {})
    assert gateway_address(deployment, None) == "127.0.0.1:1234"
    (tmp_path / "gateway.sock").touch()
    assert gateway_address(deployment, None) == f"unix:{tmp_path}/gateway.sock"
    assert gateway_address(deployment, "there:1") == "there:1"


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"TANDEM_GATEWAY_REPLICAS": "dns:there:7000"}, r"gateway\.replicas"),
        ({"TANDEM_DECODE_LISTEN": "127.0.0.1:7002"}, r"decode\.listen"),
    ],
)
def test_replicas_started_here_are_not_named_or_addressed_elsewhere_too(tmp_path, environ, named):
    with pytest.raises(ConfigError, match=named):
        resolve(Overrides(run_dir=tmp_path, num_replicas=2), environ)
    assert resolve(Overrides(run_dir=tmp_path), environ).num_replicas == 1


def test_the_last_replicas_sockets_must_fit_too(tmp_path):
    run_dir = tmp_path / ("x" * (80 - len(str(tmp_path))))
    assert resolve(Overrides(run_dir=run_dir), {}).run_dir == run_dir
    with pytest.raises(ConfigError, match="too long"):
        resolve(Overrides(run_dir=run_dir, num_replicas=2), {})


def test_a_comma_would_part_one_replica_into_two(tmp_path):
    assert resolve(Overrides(run_dir=tmp_path / "a,b"), {}).num_replicas == 1
    with pytest.raises(ConfigError, match="comma"):
        resolve(Overrides(run_dir=tmp_path / "a,b", num_replicas=2), {})


@pytest.mark.parametrize("number", ["0", "-1", "65", "two"])
def test_a_number_of_replicas_that_is_none_is_a_usage_error(number):
    result = CliRunner().invoke(up, ["--replicas", number])
    assert result.exit_code == 2
    assert "--replicas" in result.output


def test_a_programs_name_says_whose_it_is():
    for program in (Program("prefill"), Program("prefill", 3), Program("gateway")):
        assert parse_program(program.name) == program


def test_replicas_are_found_as_they_were_started_last(tmp_path):
    make_run_dir(tmp_path, 3)
    assert replica_dirs(tmp_path) == {0: tmp_path}
    conf = render_conf(resolve(Overrides(run_dir=tmp_path, num_replicas=3), {}), {})
    (tmp_path / "supervisord.conf").write_text(conf)
    assert replica_dirs(tmp_path) == {0: tmp_path, 1: tmp_path / "replica-1", 2: tmp_path / "replica-2"}
    assert stat.S_IMODE((tmp_path / "replica-2").stat().st_mode) == 0o700
