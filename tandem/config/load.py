"""Reads a service's configuration: a TOML file, then the environment over it, then flags over both.

A key that nobody knows stops the start with the name under which it was written, in whichever section or of
whichever service: one file and one environment serve all five. A bad value is reported under its full key.
"""

import difflib
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, overload

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from tandem.config.help import expectation, help_text
from tandem.config.settings import (
    KEEPER_SOCKET,
    SERVICES,
    CommonConfig,
    ControllerConfig,
    DecodeConfig,
    GatewayConfig,
    MemdConfig,
    PrefillConfig,
)
from tandem.errors import ConfigError

COMMON = "common"
ENV_PREFIX = "TANDEM_"
ENV_CONFIG_FILE = "TANDEM_CONFIG"
MAX_SOCKET_PATH_BYTES = 107
_SOCKET_NAMES = (*(f"{service}.sock" for service in SERVICES), "memd.fd.sock", KEEPER_SOCKET)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as somebody wrote it; `origin` says where, `is_text` whether the type is still to be read out."""

    section: str
    key: str
    value: Any
    origin: str
    is_text: bool


@overload
def load_config(service: Literal["memd"], argv: Sequence[str], environ: Mapping[str, str]) -> MemdConfig: ...
@overload
def load_config(service: Literal["prefill"], argv: Sequence[str], environ: Mapping[str, str]) -> PrefillConfig: ...
@overload
def load_config(service: Literal["decode"], argv: Sequence[str], environ: Mapping[str, str]) -> DecodeConfig: ...
@overload
def load_config(
    service: Literal["controller"], argv: Sequence[str], environ: Mapping[str, str]
) -> ControllerConfig: ...
@overload
def load_config(service: Literal["gateway"], argv: Sequence[str], environ: Mapping[str, str]) -> GatewayConfig: ...
@overload
def load_config(service: str, argv: Sequence[str], environ: Mapping[str, str]) -> CommonConfig: ...
def load_config(service: str, argv: Sequence[str], environ: Mapping[str, str]) -> CommonConfig:
    """The service's frozen configuration; `argv` without the program's name.

    ConfigError names the key; ``--help`` prints every key and raises SystemExit(0).
    """
    flags = _read_flags(argv)
    if "help" in flags:
        sys.stdout.write(help_text(service))
        raise SystemExit(0)
    path = flags.pop("config", environ.get(ENV_CONFIG_FILE, ""))
    file_settings = _file_settings(Path(path)) if path else []
    settings = [*file_settings, *_environment_settings(environ), *_flag_settings(service, flags)]
    relevant = {setting.key: setting for setting in settings if setting.section in (COMMON, service)}
    values = {key: _checked(service, setting) for key, setting in relevant.items()}
    config = SERVICES[service](**values)
    return _with_absolute_paths(config)


def _section_keys() -> dict[str, list[str]]:
    """Every section of the file and the keys that stand in it."""
    common = list(CommonConfig.model_fields)
    own = {name: [key for key in kind.model_fields if key not in common] for name, kind in SERVICES.items()}
    return {COMMON: common, **own}


def _read_flags(argv: Sequence[str]) -> dict[str, str]:
    """Flag names without their dashes, to values. Both ``--key value`` and ``--key=value``."""
    flags: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise ConfigError(word, "not a flag; flags are written --key value")
        name, has_value, value = word.removeprefix("--").partition("=")
        flags[name] = value if has_value or name == "help" else _next_word(words, word)
    return flags


def _next_word(words: Iterable[str], flag: str) -> str:
    for word in words:
        return word
    raise ConfigError(flag, "needs a value")


def _flag_settings(service: str, flags: Mapping[str, str]) -> list[Setting]:
    sections = _section_keys()
    known = {key.replace("_", "-"): (section, key) for section in (COMMON, service) for key in sections[section]}
    settings = []
    for flag, value in flags.items():
        if flag not in known:
            raise _unknown(f"--{flag}", [f"--{name}" for name in (*known, "config", "help")])
        section, key = known[flag]
        settings.append(Setting(section, key, value, f"--{flag}", is_text=True))
    return settings


def _environment_settings(environ: Mapping[str, str]) -> list[Setting]:
    known = {
        ENV_PREFIX + ("" if section == COMMON else f"{section.upper()}_") + key.upper(): (section, key)
        for section, keys in _section_keys().items()
        for key in keys
    }
    settings = []
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == ENV_CONFIG_FILE:
            continue
        if name not in known:
            raise _unknown(name, [*known, ENV_CONFIG_FILE])
        section, key = known[name]
        settings.append(Setting(section, key, environ[name], name, is_text=True))
    return settings


def _file_settings(path: Path) -> list[Setting]:
    sections = _section_keys()
    settings = []
    for section, table in _read_toml(path).items():
        if section not in sections:
            raise _unknown(section, _places(section) or sections, "section", f" in {path}")
        if not isinstance(table, dict):
            raise ConfigError(section, f"got {table!r} in {path}; expected a section [{section}]")
        settings += [_file_setting(path, section, key, value) for key, value in table.items()]
    return settings


def _file_setting(path: Path, section: str, key: str, value: Any) -> Setting:
    sections = _section_keys()
    if key not in sections[section]:
        known = [f"{section}.{name}" for name in sections[section]]
        raise _unknown(f"{section}.{key}", _places(key) or known, "key", f" in {path}")
    return Setting(section, key, value, str(path), is_text=False)


def _places(key: str) -> list[str]:
    """Where a key of that name may stand."""
    return [f"{section}.{key}" for section, keys in _section_keys().items() if key in keys]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("config", f"{path} is not TOML: {error}") from error


def _unknown(name: str, known: Iterable[str], what: str = "key", where: str = "") -> ConfigError:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ConfigError(name, f"unknown {what}{where}{hint}")


def _checked(service: str, setting: Setting) -> Any:
    """The value in the field's type, by the field's own constraints."""
    field = SERVICES[service].model_fields[setting.key]
    try:
        return _parse(field, setting)
    except ValueError as error:
        problem = f"got {setting.value!r} from {setting.origin}; expected {expectation(field)}"
        raise ConfigError(f"{setting.section}.{setting.key}", problem) from error


def _parse(field: FieldInfo, setting: Setting) -> Any:
    """ValueError, of which pydantic's is one: not of the field's type. An empty path would be the present folder."""
    if field.annotation is Path and setting.value == "":
        raise ValueError("an empty path")
    adapter: TypeAdapter[Any] = TypeAdapter(cast("type[Any]", Annotated[field.annotation, field]))
    if setting.is_text:
        return adapter.validate_strings(setting.value)
    return adapter.validate_json(json.dumps(setting.value, default=str), strict=True)


def _with_absolute_paths(config: CommonConfig) -> CommonConfig:
    run_dir = _absolute("run_dir", config.run_dir)
    longest = max(len(bytes(run_dir / name)) for name in _SOCKET_NAMES)
    if longest > MAX_SOCKET_PATH_BYTES:
        allowed = len(bytes(run_dir)) - (longest - MAX_SOCKET_PATH_BYTES)
        problem = f"{run_dir} is too long for unix sockets; choose one of at most {allowed} bytes (--run-dir)"
        raise ConfigError(f"{COMMON}.run_dir", problem)
    return config.model_copy(update={"run_dir": run_dir, "cache_dir": _absolute("cache_dir", config.cache_dir)})


def _absolute(key: str, path: Path) -> Path:
    """A ~ is the home folder in a file and in the environment too, where no shell has seen it."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{COMMON}.{key}", f"{path}: {error}") from error
