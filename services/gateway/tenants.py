"""Who calls: API keys to tenants, by a file that may change while the gateway runs."""

import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import structlog

from tandem.clock import Clock
from tandem.config.tenants import Quotas, Tenant, key_digest, private_tenant, read_tenants
from tandem.errors import ConfigError, UnauthenticatedError
from tandem.kv.contents import domain_salt

LOOK_INTERVAL_S = 1.0
SCHEME = "bearer "
OPERATOR = ""  # who calls over the run directory's socket without a key
LOCAL_PEER = "unix:"

_UNBOUNDED = Quotas()
_log = structlog.get_logger()


class TenantDirectory(Protocol):
    """Who may call, and what of the server is whose."""

    def authenticate(self, authorization: str | None, peer: str) -> str:
        """The caller's tenant, by its metadata and the address that gRPC saw. UnauthenticatedError."""
        ...

    def named(self, caller: str, tenant: str) -> str:
        """The tenant that a caller asks about. UnauthenticatedError: it is not its own. ConfigError: there are none."""
        ...

    def quotas(self, tenant: str) -> Quotas:
        """Its bounds; none of one that has been taken out meanwhile."""
        ...

    def salt(self, tenant: str) -> bytes | None:
        """What its content keys begin with; None when it reuses and leaves nothing."""
        ...


class OpenDirectory:
    """Nobody needs a key, and everybody is one tenant without a name."""

    def authenticate(self, authorization: str | None, peer: str) -> str:
        """Everybody."""
        return OPERATOR

    def named(self, caller: str, tenant: str) -> str:
        """There is none."""
        raise ConfigError("gateway.api_keys", f"is not set, so there are no tenants, and no {tenant}")

    def quotas(self, tenant: str) -> Quotas:
        """None."""
        return _UNBOUNDED

    def salt(self, tenant: str) -> bytes | None:
        """Clients' own salts alone divide the cache."""
        return b""


class KeyedDirectory:
    """Tenants of a file, which is looked at again when somebody calls, at most once in `LOOK_INTERVAL_S`.

    A file that has become unreadable or wrong changes nothing: the tenants stay as they were.
    """

    def __init__(self, path: Path, secret: bytes, clock: Clock) -> None:
        """ConfigError, as of `read_tenants`."""
        self._path = path
        self._secret = secret
        self._clock = clock
        self._looked_s = clock.now()
        self._seen = _identity(path)
        self._tenants = read_tenants(path)

    def authenticate(self, authorization: str | None, peer: str) -> str:
        """See `TenantDirectory`. The run directory's socket is open to its owner alone, who needs no key."""
        self._look()
        if authorization is None:
            if peer.startswith(LOCAL_PEER):
                return OPERATOR
            raise UnauthenticatedError("an API key is missing; send the metadata `authorization: Bearer KEY`")
        if not authorization.lower().startswith(SCHEME):
            raise UnauthenticatedError("`authorization` is not of the form `Bearer KEY`")
        tenant = _owner(key_digest(authorization[len(SCHEME) :].strip()), self._tenants.by_hash.items())
        if tenant is None:
            raise UnauthenticatedError("the API key is unknown, or has been withdrawn; ask the operator for another")
        return tenant.name

    def named(self, caller: str, tenant: str) -> str:
        """See `TenantDirectory`. One that has been taken out may have left something."""
        if caller not in (OPERATOR, tenant):
            raise UnauthenticatedError("of other tenants only who calls over the run directory's socket may ask")
        return tenant

    def quotas(self, tenant: str) -> Quotas:
        """See `TenantDirectory`."""
        return self._tenant(tenant).quotas

    def salt(self, tenant: str) -> bytes | None:
        """See `TenantDirectory`."""
        domain = self._tenant(tenant).domain
        return None if domain is None else domain_salt(self._secret, domain)

    def _tenant(self, name: str) -> Tenant:
        return self._tenants.by_name.get(name) or private_tenant(name)

    def _look(self) -> None:
        now_s = self._clock.now()
        if now_s - self._looked_s < LOOK_INTERVAL_S:
            return
        self._looked_s = now_s
        identity = _identity(self._path)
        if identity != self._seen:
            self._seen = identity
            self._read()

    def _read(self) -> None:
        try:
            self._tenants = read_tenants(self._path)
        except ConfigError as error:
            _log.error("tenants.refused", message=str(error))
        else:
            _log.info("tenants.read", num_tenants=len(self._tenants.by_name), num_keys=len(self._tenants.by_hash))


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """That of a call's metadata; the last when there are several."""
    value = dict(metadata or ()).get("authorization")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _owner(digest: bytes, known: Iterable[tuple[bytes, Tenant]]) -> Tenant | None:
    """Every hash is compared, in whole: how long it takes says nothing of which one fits, or how nearly.

    What is compared is a hash of what the caller sent, so that nobody could steer towards a known one anyway.
    """
    found = None
    for other, tenant in known:
        if hmac.compare_digest(digest, other):
            found = tenant
    return found


def _identity(path: Path) -> tuple[int, int, int]:
    """Another one when the file has been written or replaced; zeros when it is away."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_ino, status.st_size)
