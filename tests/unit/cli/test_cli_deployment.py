import os
import stat

import pytest

from tandem.cli.deployment import Overrides, gateway_address, make_run_dir, resolve
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
