import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from tandem.config.load import load_config
from tandem.config.settings import KEEPER_SOCKET, SERVICES, CommonConfig
from tandem.errors import ConfigError


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "tandem.toml"
        path.write_text(text)
        return str(path)

    return write


def refusal(service="memd", argv=(), environ=None) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        load_config(service, list(argv), environ or {})
    return raised.value


@pytest.mark.parametrize("service", SERVICES)
def test_defaults_are_complete(service):
    config = load_config(service, [], {})
    assert type(config) is SERVICES[service]
    assert config.run_dir.is_absolute()


def test_flags_win_over_the_environment_and_that_over_the_file(config_file):
    path = config_file("[memd]\nblock_size = 4\nkv_bytes = 5\nlease_ttl_s = 6\n[common]\nmodel = 'a'\n")
    environ = {"TANDEM_MEMD_KV_BYTES": "50", "TANDEM_MEMD_LEASE_TTL_S": "60", "TANDEM_CONFIG": path}
    config = load_config("memd", ["--lease-ttl-s=600"], environ)
    assert (config.block_size, config.kv_bytes, config.lease_ttl_s, config.model) == (4, 50, 600.0, "a")


def test_the_flag_names_another_file_than_the_environment(config_file, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("[memd]\nblock_size = 8\n")
    environ = {"TANDEM_CONFIG": config_file("[memd]\nblock_size = 4\n")}
    assert load_config("memd", ["--config", str(other)], environ).block_size == 8


def test_settings_of_other_services_and_programs_are_left_alone(config_file):
    path = config_file("[gateway]\nport = 1234\n")
    environ = {"PATH": "/bin", "TANDEM_DECODE_SPARE_BLOCKS": "7"}
    assert load_config("memd", ["--config", path], environ) == load_config("memd", [], {})


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("[memd]\nblok_size = 16", "memd.blok_size", "memd.block_size"),
        ("[memd]\nmodel = 'x'", "memd.model", "common.model"),
        ("[gateway]\nprot = 1", "gateway.prot", "gateway.port"),
        ("[mem]\nblock_size = 16", "mem", "memd"),
        ("model = 'x'", "model", "common.model"),
    ],
)
def test_unknown_keys_of_the_file_are_refused_by_name(config_file, text, key, hint):
    error = refusal(argv=["--config", config_file(text)])
    assert error.key == key
    assert f"did you mean {hint}?" in str(error)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("TANDEM_MEMD_BLOK_SIZE", "TANDEM_MEMD_BLOCK_SIZE"),
        ("TANDEM_RUN_DRI", "TANDEM_RUN_DIR"),
        ("TANDEM_MEMD_MODEL", "TANDEM_MODEL"),
        ("TANDEM_CONFG", "TANDEM_CONFIG"),
    ],
)
def test_unknown_variables_are_refused_by_name(name, hint):
    error = refusal(environ={name: "1"})
    assert error.key == name
    assert f"did you mean {hint}?" in str(error)


@pytest.mark.parametrize(
    ("argv", "key", "text"),
    [
        (["--blok-size", "1"], "--blok-size", "did you mean --block-size?"),
        (["--port", "1"], "--port", "unknown key"),
        (["--block-size"], "--block-size", "needs a value"),
        (["block-size", "1"], "block-size", "not a flag"),
    ],
)
def test_unknown_flags_are_refused_by_name(argv, key, text):
    error = refusal(argv=argv)
    assert error.key == key
    assert text in str(error)


def test_no_hint_where_nothing_is_close():
    assert "did you mean" not in str(refusal(argv=["--xyzzy", "1"]))


@pytest.mark.parametrize(
    ("service", "flag", "value", "key", "expected"),
    [
        ("memd", "--block-size", "x", "memd.block_size", "an integer, at least 1"),
        ("memd", "--block-size", "0", "memd.block_size", "an integer, at least 1"),
        ("memd", "--lease-ttl-s", "nan", "memd.lease_ttl_s", "a number, greater than 0"),
        ("memd", "--lease-ttl-s", "inf", "memd.lease_ttl_s", "a number, greater than 0"),
        ("memd", "--dtype", "int3", "memd.dtype", "one of 'auto', 'bfloat16', 'float32'"),
        ("memd", "--pin-fraction", "1", "memd.pin_fraction", "a number, at least 0, less than 1"),
        ("memd", "--run-dir", "", "common.run_dir", "a path"),
        ("memd", "--drain-timeout-s", "-1", "common.drain_timeout_s", "a number, greater than 0"),
        ("gateway", "--port", "65536", "gateway.port", "an integer, at least 0, at most 65535"),
        ("controller", "--prefill-percent", "101", "controller.prefill_percent", "an integer, at least 1, at most 100"),
    ],
)
def test_bad_values_name_key_value_and_expectation(service, flag, value, key, expected):
    error = refusal(service, [flag, value])
    assert error.key == key
    assert repr(value) in str(error)
    assert flag in str(error)
    assert f"expected {expected}" in str(error)


@pytest.mark.parametrize("value", ["true", "'16'", "16.5", "[16]", "1979-05-27", "nan"])
def test_values_of_the_file_have_the_right_type(config_file, value):
    error = refusal(argv=["--config", config_file(f"[memd]\nblock_size = {value}\n")])
    assert error.key == "memd.block_size"
    assert "expected an integer" in str(error)


def test_an_integer_will_do_for_seconds(config_file):
    path = config_file("[common]\ndrain_timeout_s = 5\n")
    assert load_config("decode", ["--config", path], {}).drain_timeout_s == 5.0


@pytest.mark.parametrize("content", [b"[memd", b"\xff\xfe", b"[memd]\nblock_size = 1\nblock_size = 2\n"])
def test_a_file_that_is_not_toml(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    error = refusal(argv=["--config", str(path)])
    assert error.key == "config"
    assert str(path) in str(error)


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in str(refusal(argv=["--config", str(tmp_path / "none.toml")]))


@pytest.mark.parametrize("service", SERVICES)
def test_help_lists_every_key_with_its_meaning(service, capsys):
    with pytest.raises(SystemExit) as ended:
        load_config(service, ["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for key, field in SERVICES[service].model_fields.items():
        assert f"--{key.replace('_', '-')} " in text
        assert field.description
        assert field.description in text
    assert ("TANDEM_MEMD_" in text) == (service == "memd")


def test_help_writes_what_a_file_may_hold(capsys):
    with pytest.raises(SystemExit):
        load_config("memd", ["--help"], {})
    assert "--touch-kv  (true or false; default true)" in capsys.readouterr().out


def test_relative_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config("memd", ["--run-dir", "r", "--cache-dir", "c"], {})
    assert (config.run_dir, config.cache_dir) == (Path.cwd() / "r", Path.cwd() / "c")


@pytest.mark.parametrize("key", ["run_dir", "cache_dir"])
def test_the_home_folder_is_meant_where_no_shell_sees_it(monkeypatch, tmp_path, config_file, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = config_file(f"[common]\n{key} = '~/x'\n")
    assert getattr(load_config("memd", ["--config", path], {}), key) == tmp_path / "x"
    assert getattr(load_config("memd", [], {f"TANDEM_{key.upper()}": "~/x"}), key) == tmp_path / "x"
    assert refusal(environ={f"TANDEM_{key.upper()}": "~nobody-at-all/x"}).key == f"common.{key}"


def test_run_dir_leaves_room_for_every_socket():
    longest = "/" + "x" * (107 - len("/" + KEEPER_SOCKET) - 1)
    config = load_config("memd", ["--run-dir", longest], {})
    assert len(os.fsencode(config.run_dir / KEEPER_SOCKET)) == 107
    error = refusal("memd", ["--run-dir", longest + "x"])
    assert error.key == "common.run_dir"
    assert "at most 90 bytes" in str(error)


def test_run_dir_is_measured_in_bytes():
    assert refusal("memd", ["--run-dir", "/" + "ü" * 50]).key == "common.run_dir"


def test_a_configuration_is_frozen():
    config = load_config("memd", [], {})
    with pytest.raises(ValidationError):
        config.block_size = 1
    assert isinstance(config, CommonConfig)
