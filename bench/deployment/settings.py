"""Flags of Tandem's services, as commands take them."""

from collections.abc import Sequence

from tandem.config.settings import SERVICES
from tandem.errors import ConfigError


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, object]]:
    """``memd.kv-bytes=1000`` as flags by service. ConfigError."""
    settings: dict[str, dict[str, object]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        service, dot, name = key.partition(".")
        if not (equals and dot and name) or service not in SERVICES:
            raise ConfigError("set", f"{text!r} is not SERVICE.KEY=VALUE, with one of {', '.join(SERVICES)}")
        settings.setdefault(service, {})[name.replace("_", "-")] = value
    return settings
