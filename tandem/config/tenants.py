"""The file of `gateway.api_keys`: one table a tenant, with its keys' hashes, whom it shares KV with, and its quotas.

::

    [acme]
    keys = ["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
    domain = "org:acme"
    requests_per_minute = 600

Keys are 256 random bits (`new_key`), so that a plain hash of one cannot be searched for.
"""

import hashlib
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tandem.config.settings import Share
from tandem.errors import ConfigError

SETTING = "gateway.api_keys"
KEY_PREFIX = "tandem-"
KEY_BYTES = 32
HASH_PREFIX = "sha256:"

KeyHash = Annotated[str, Field(pattern=rf"^{HASH_PREFIX}[0-9a-f]{{64}}$")]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Quota = Annotated[int, Field(ge=1)]


class Quotas(BaseModel):
    """Bounds on what one tenant has of the server; None is none beyond everybody's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_waiting: Quota | None = None  # requests
    max_running: Quota | None = None  # sequences
    max_kv_blocks: Quota | None = None  # of its running sequences, at their longest
    requests_per_minute: Quota | None = None
    tokens_per_minute: Quota | None = None  # of prompts and answers
    min_recompute_ratio: Share | None = None  # at which segments may be reused approximately; 1: not at all


class TenantTable(Quotas):
    """One table of the file."""

    keys: Annotated[tuple[KeyHash, ...], Field(min_length=1)]
    domain: Annotated[str, Field(pattern=r"^(private|public|org:[A-Za-z0-9][A-Za-z0-9._-]{0,63})$")] = "private"
    kv_reuse: Literal["exact", "none"] = "exact"
    cache_generation: Quota = 1  # another one than before: all that is cached of the tenant is forgotten


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls. `domain` names whom it shares KV with, and is None when it reuses and leaves nothing."""

    name: str
    domain: str | None
    quotas: Quotas


@dataclass(frozen=True, slots=True)
class Tenants:
    """All of a file; `by_hash` has the SHA-256 of every key."""

    by_name: Mapping[str, Tenant]
    by_hash: Mapping[bytes, Tenant]


_TABLES: TypeAdapter[dict[str, TenantTable]] = TypeAdapter(dict[TenantName, TenantTable])


def private_tenant(name: str) -> Tenant:
    """One that shares with nobody and has no quotas."""
    return Tenant(name, f"private:{name}", Quotas())


def read_tenants(path: Path) -> Tenants:
    """ConfigError under `SETTING` names the file and the field."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(SETTING, f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(SETTING, f"{path} is not TOML: {error}") from error
    return _tenants(path, _checked(path, tables))


def new_key() -> str:
    """A fresh one, which only its holder is to have."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def key_digest(key: str) -> bytes:
    """What the server knows of a key."""
    return hashlib.sha256(key.encode()).digest()


def key_line(key: str) -> str:
    """The key's hash as the file has it."""
    return HASH_PREFIX + key_digest(key).hex()


def check_name(name: str) -> None:
    """ConfigError when no tenant can be called that."""
    try:
        TypeAdapter(TenantName).validate_python(name)
    except ValidationError as error:
        raise ConfigError("TENANT", f"{name!r} is no name; use letters, digits and . _ -, at most 64") from error


def _checked(path: Path, tables: dict[str, Any]) -> dict[str, TenantTable]:
    try:
        return _TABLES.validate_python(tables)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]  # an input may be a key, written by mistake
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ConfigError(SETTING, f"{path}: {field}: {first['msg']}") from None


def _tenants(path: Path, tables: Mapping[str, TenantTable]) -> Tenants:
    by_name = {name: _tenant(name, table) for name, table in tables.items()}
    by_hash: dict[bytes, Tenant] = {}
    for name, table in tables.items():
        for line in table.keys:
            digest = bytes.fromhex(line.removeprefix(HASH_PREFIX))
            if digest in by_hash:
                raise ConfigError(SETTING, f"{path}: {name}.keys: holds a key that {by_hash[digest].name} has already")
            by_hash[digest] = by_name[name]
    return Tenants(by_name, by_hash)


def _tenant(name: str, table: TenantTable) -> Tenant:
    shared = f"private:{name}" if table.domain == "private" else table.domain
    domain = shared if table.cache_generation == 1 else f"{shared}#{table.cache_generation}"
    quotas = Quotas(**table.model_dump(include=set(Quotas.model_fields)))
    return Tenant(name, None if table.kv_reuse == "none" else domain, quotas)
