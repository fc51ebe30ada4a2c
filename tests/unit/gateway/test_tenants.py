"""Who may call, what each tenant may use, and what none of them learns of another."""

import asyncio
from pathlib import Path

import pytest

from services.gateway.frontend import INLINE_CHARS, Call
from services.gateway.listening import directory, gateway_port
from services.gateway.reuse import ReuseFields
from services.gateway.secret_file import NAME, server_secret
from services.gateway.tenants import KeyedDirectory, OpenDirectory
from tandem.clock import ManualClock
from tandem.config.settings import GatewayConfig
from tandem.config.tenants import key_line
from tandem.errors import (
    ConfigError,
    DuplicateRequestError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    UnauthenticatedError,
)
from tandem.kv.contents import domain_of
from tandem.rpc.listening import is_loopback
from tandem.types import ContentKind, FinishReason, SegmentOutcome, SegmentReuse
from tests.support.gateway_fakes import Rig, settle
from tests.support.gateway_world import FakeStore, byte_model

REMOTE, LOCAL = "ipv4:10.0.0.1:4000", "unix:"
SECRET = bytes(range(32))


def table(name: str, *lines: str) -> str:
    return "\n".join([f"[{name}]", f'keys = ["{key_line(name)}"]', *lines, ""])


TENANTS = "".join(
    [
        table("private"),
        table("other"),
        table("worker", 'domain = "org:works"'),
        table("colleague", 'domain = "org:works"'),
        table("reader", 'domain = "public"'),
        table("writer", 'domain = "public"'),
        table("shy", 'kv_reuse = "none"'),
        table("small", "max_waiting = 1", "max_running = 1", "max_kv_blocks = 4"),
        table("slow", "requests_per_minute = 2", "tokens_per_minute = 60"),
        table("careful", "min_recompute_ratio = 0.5"),
        table("exact", "min_recompute_ratio = 1"),
    ]
)


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    return path


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def keyed(path, clock) -> KeyedDirectory:
    return KeyedDirectory(path, SECRET, clock)


@pytest.fixture
async def rig(path) -> Rig:
    rig = Rig(tenants=lambda clock: KeyedDirectory(path, SECRET, clock))
    return await rig.up()


def test_a_key_names_its_tenant(keyed):
    assert keyed.authenticate("Bearer private", REMOTE) == "private"
    assert keyed.authenticate("bearer  other ", LOCAL) == "other"
    assert keyed.authenticate(None, LOCAL) == ""


@pytest.mark.parametrize("shown", [None, "", "Bearer", "Bearer ", "Bearer nobody", "Basic private", "private"])
def test_without_a_known_key_nobody_comes_in(keyed, shown):
    with pytest.raises(UnauthenticatedError) as caught:
        keyed.authenticate(shown, REMOTE)
    assert "nobody" not in str(caught.value)


def test_a_wrong_key_is_refused_on_the_socket_too(keyed):
    with pytest.raises(UnauthenticatedError):
        keyed.authenticate("Bearer nobody", LOCAL)


def test_the_file_is_read_again_when_it_has_changed(keyed, path, clock):
    path.write_text(table("private", "max_running = 3") + table("fresh"))
    assert keyed.authenticate("Bearer other", REMOTE) == "other"  # not looked at yet
    clock.advance(1.0)
    with pytest.raises(UnauthenticatedError):
        keyed.authenticate("Bearer other", REMOTE)
    assert keyed.authenticate("Bearer fresh", REMOTE) == "fresh"
    assert keyed.quotas("private").max_running == 3


@pytest.mark.parametrize("break_it", [Path.unlink, lambda path: path.write_text("[a]")])
def test_a_file_that_goes_wrong_changes_nothing(keyed, path, clock, break_it):
    break_it(path)
    clock.advance(1.0)
    assert keyed.authenticate("Bearer other", REMOTE) == "other"
    path.write_text(table("fresh"))
    clock.advance(1.0)
    assert keyed.authenticate("Bearer fresh", REMOTE) == "fresh"


def test_the_operator_and_nobody_else_asks_about_other_tenants(keyed):
    assert [keyed.named("", "private"), keyed.named("private", "private"), keyed.named("", "gone")] == [
        "private",
        "private",
        "gone",
    ]
    with pytest.raises(UnauthenticatedError, match="of other tenants only who calls over the run directory's socket"):
        keyed.named("other", "private")
    with pytest.raises(ConfigError, match=r"gateway\.api_keys.*there are no tenants, and no private"):
        OpenDirectory().named("", "private")


def test_salts_are_those_of_domains(keyed):
    salts = {name: keyed.salt(name) for name in ("private", "other", "worker", "colleague", "reader", "writer", "")}
    assert salts["worker"] == salts["colleague"]
    assert salts["reader"] == salts["writer"]
    assert len(set(salts.values())) == 5
    assert keyed.salt("shy") is None
    assert OpenDirectory().salt("") == b""


def test_what_is_cached_of_a_tenant_can_be_forgotten(keyed, path, clock):
    before = {name: keyed.salt(name) for name in ("private", "other")}
    path.write_text(table("private", "cache_generation = 2") + table("other"))
    clock.advance(1.0)
    keyed.authenticate("Bearer other", REMOTE)
    assert keyed.salt("private") not in before.values()
    assert keyed.salt("other") == before["other"]


def test_another_server_has_other_salts(keyed, path, clock):
    assert KeyedDirectory(path, bytes(32), clock).salt("reader") != keyed.salt("reader")


def test_the_secret_is_drawn_once_and_for_its_owner_alone(tmp_path):
    secret = server_secret(tmp_path)
    assert len(secret) == 32
    assert server_secret(tmp_path) == secret
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    (tmp_path / NAME).chmod(0o644)
    with pytest.raises(ConfigError, match="run_dir"):
        server_secret(tmp_path)


def test_the_secret_needs_no_run_directory_before_it(tmp_path):
    run_dir = tmp_path / "new" / "run"
    assert server_secret(run_dir) == server_secret(run_dir)
    assert run_dir.stat().st_mode & 0o777 == 0o700


def test_a_secret_that_is_none_is_refused(tmp_path):
    (tmp_path / NAME).touch(mode=0o600)
    with pytest.raises(ConfigError, match="0 bytes"):
        server_secret(tmp_path)


def test_a_wrong_file_stops_the_start(tmp_path, clock):
    (tmp_path / "keys").write_text("[a]")
    with pytest.raises(ConfigError, match=r"a\.keys"):
        directory(GatewayConfig(run_dir=tmp_path, api_keys=str(tmp_path / "keys")), clock)
    assert isinstance(directory(GatewayConfig(run_dir=tmp_path), clock), OpenDirectory)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.1.2.3", "gateway.example"])
def test_plain_text_for_others_must_be_asked_for(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="allow_plaintext"):
        gateway_port(GatewayConfig(host=host))
    assert gateway_port(GatewayConfig(host=host, allow_plaintext=True)).credentials is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_plain_text_on_this_machine_is_nobodys_business(host):
    assert gateway_port(GatewayConfig(host=host)).credentials is None


def test_half_a_configuration_of_tls_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gateway\.tls_key"):
        gateway_port(GatewayConfig(tls_cert="cert.pem"))
    with pytest.raises(ConfigError, match=r"gateway\.tls_cert"):
        gateway_port(GatewayConfig(tls_client_ca="ca.pem", allow_plaintext=True))
    (tmp_path / "key").write_text("no key")
    with pytest.raises(ConfigError, match=r"gateway\.tls_key"):
        gateway_port(GatewayConfig(tls_cert="cert.pem", tls_key=str(tmp_path / "key")))


async def namespace_of(rig: Rig, tenant: str, salt: str = "") -> bytes:
    return (await rig.request("the same prompt", tenant=tenant, cache_salt=salt)).arrival.cache_namespace


async def test_who_shares_kv_with_whom(rig):
    of = {
        name: await namespace_of(rig, name) for name in ("private", "other", "worker", "colleague", "reader", "writer")
    }
    assert of["worker"] == of["colleague"]
    assert of["reader"] == of["writer"]
    assert len(set(of.values())) == 4
    assert await namespace_of(rig, "shy") == b""


async def domain_told(rig: Rig, tenant: str) -> bytes:
    """To the phase, with the sequence."""
    request = await rig.request("the same prompt", tenant=tenant)
    return request.sequences[0].spec(1).domain


async def test_whose_kv_it_is_is_told_where_nothing_is_reused(rig, keyed):
    of = {name: domain_of(await namespace_of(rig, name)) for name in ("private", "worker", "reader")}
    assert {name: await domain_told(rig, name) for name in of} == of
    assert await domain_told(rig, "shy") == b""
    off = await Rig(GatewayConfig(prefix_cache=False), tenants=lambda _clock: keyed).up()
    assert await namespace_of(off, "private") == b""
    assert {name: await domain_told(off, name) for name in of} == of
    assert await domain_told(off, "colleague") == of["worker"]
    assert await domain_told(off, "shy") == b""


async def test_a_tenant_is_known_by_what_its_namespaces_have_in_common(rig):
    own = {domain_of(await namespace_of(rig, "private", salt)) for salt in ("", "x")}
    assert len(own) == 1
    assert own != {domain_of(await namespace_of(rig, "other"))}
    assert domain_of(await namespace_of(rig, "worker")) == domain_of(await namespace_of(rig, "colleague", "x"))
    frontend = rig.gateway.frontend
    where = frontend.cache_keys((), Call(tenant=frontend.caller(None, LOCAL, "private")))
    assert {domain_of(where.namespace)} == own


async def test_a_clients_salt_divides_its_own_domain_alone(rig):
    plain, salted = await namespace_of(rig, "private"), await namespace_of(rig, "private", "x")
    assert plain != salted
    assert salted == await namespace_of(rig, "private", "x")
    assert salted != await namespace_of(rig, "other", "x")


async def test_tenants_do_not_meet_in_their_request_ids(rig):
    one = await rig.request(request_id="r", tenant="private")
    await rig.request(request_id="r", tenant="other")
    with pytest.raises(DuplicateRequestError):
        await rig.request(request_id="r", tenant="other")
    with pytest.raises(NotFoundError):
        rig.gateway.frontend.abort("r", "worker")
    rig.gateway.frontend.abort("r", "other")
    assert not one.finished


async def test_waiting_has_a_quota(path):
    rig = Rig(
        config=GatewayConfig(max_running=1, queue_policy="fcfs"),
        tenants=lambda clock: KeyedDirectory(path, SECRET, clock),
    )
    await rig.up()
    await rig.request(tenant="other")
    await rig.request(tenant="small", max_tokens=4)
    with pytest.raises(QueueFullError, match="max_waiting of tenant 'small'") as caught:
        await rig.request(tenant="small")
    assert caught.value.retry_delay_s > 0
    await rig.request(tenant="other")


async def test_running_has_a_quota_that_stops_nobody_else(rig):
    first = await rig.request(tenant="small", max_tokens=4)
    second = await rig.request(tenant="small", max_tokens=4)
    other = await rig.request(tenant="other")
    assert [spec.request_id for spec in rig.prefill.held.values()] == [first.request_id, other.request_id]
    assert rig.orchestrator.load.num_waiting == 1
    rig.prefilled(65, FinishReason.LENGTH)
    assert second.request_id in [spec.request_id for spec in rig.prefill.held.values()]
    assert rig.orchestrator.load.num_waiting == 0


async def test_one_that_waits_for_a_quota_can_leave(rig):
    await rig.request(tenant="small", max_tokens=4)
    second = await rig.request(tenant="small", max_tokens=4)
    rig.gateway.frontend.cancel(second)
    assert rig.orchestrator.load.num_waiting == 0


async def test_blocks_have_a_quota(rig):
    with pytest.raises(InvalidRequestError, match="max_kv_blocks of 'small' is 4"):
        await rig.request("x" * 40, tenant="small", max_tokens=30)  # 5 blocks of 16
    await rig.request("x" * 40, tenant="small", max_tokens=24)


async def test_rates_have_quotas(rig):
    await rig.request("x", tenant="slow", max_tokens=4)
    await rig.request("x", tenant="slow", max_tokens=4)
    with pytest.raises(QueueFullError, match="requests_per_minute of tenant 'slow'") as caught:
        await rig.request("x", tenant="slow")
    assert caught.value.retry_delay_s == pytest.approx(30.0)
    rig.clock.advance(30.0)
    await rig.request("x" * 90, tenant="slow")
    rig.clock.advance(30.0)
    with pytest.raises(QueueFullError, match="tokens_per_minute") as caught:
        await rig.request("x", tenant="slow")
    assert caught.value.retry_delay_s == pytest.approx(1.0)  # 60 were there, 90 were used, 30 have come back


async def test_rates_hold_for_prompts_that_are_read_at_the_same_time(path):
    def keyed(clock: ManualClock) -> KeyedDirectory:
        return KeyedDirectory(path, SECRET, clock)

    rig = await Rig(model=byte_model(40_000), store=FakeStore(num_blocks=2_500), tenants=keyed).up()
    long = "x" * (INLINE_CHARS + 1)
    calls = (rig.request(long, tenant="slow", max_tokens=4) for _ in range(3))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["QueueFullError", "QueueFullError", "Request"]


async def test_answers_count_towards_the_rate_of_tokens(rig):
    await rig.request("x" * 57, tenant="slow", max_tokens=4)
    rig.prefilled(65)
    rig.token(66)
    rig.token(67, FinishReason.LENGTH)
    with pytest.raises(QueueFullError, match="tokens_per_minute"):
        await rig.request("x", tenant="slow")


DOCUMENT = "the same document " * 10


async def segments_of(rig: Rig, tenant: str, salt: str = "") -> SegmentReuse | None:
    reuse = ReuseFields(0.1, (DOCUMENT,))
    request = await rig.request(f"{DOCUMENT}?", tenant=tenant, cache_salt=salt, reuse=reuse, max_tokens=4)
    return next(spec.reuse for spec in rig.prefill.held.values() if spec.request_id == request.request_id)


async def test_segments_are_shared_with_whom_prompts_are(rig):
    names = ("private", "other", "worker", "colleague", "")
    of = {name: (await segments_of(rig, name)).namespace for name in names}
    assert of["worker"] == of["colleague"]
    assert len(set(of.values())) == 4
    assert (await segments_of(rig, "private", "salt")).namespace not in of.values()
    prompts = {await namespace_of(rig, name) for name in names}
    assert prompts.isdisjoint(of.values())


async def test_a_segment_of_another_domains_is_as_new(rig):
    await segments_of(rig, "private")
    rig.prefilled(65, FinishReason.LENGTH, segments=(SegmentOutcome(0, 0, len(DOCUMENT), False),))
    await settle()
    built = rig.prefilled(65, FinishReason.LENGTH)
    await settle()
    assert built.content_kind is ContentKind.SEGMENT
    await segments_of(rig, "other")
    rig.prefilled(65, FinishReason.LENGTH, segments=(SegmentOutcome(0, 0, len(DOCUMENT), False),))
    await settle()
    (again,) = rig.prefill.held.values()
    assert again.token_ids == built.token_ids
    assert again.cache_namespace != built.cache_namespace


async def test_who_shares_nothing_reuses_nothing(rig):
    assert await segments_of(rig, "shy") is None


@pytest.mark.parametrize(("tenant", "least"), [("careful", "0.5"), ("exact", "1")])
async def test_a_tenant_may_be_bound_to_exactness(rig, tenant, least):
    for asked in (ReuseFields(0.4), ReuseFields()):
        with pytest.raises(InvalidRequestError, match=f"the least that is served is {least}") as caught:
            await rig.request(tenant=tenant, reuse=asked)
        assert caught.value.field == "reuse.ratio"
    await rig.request(tenant=tenant, reuse=ReuseFields(float(least)), max_tokens=4)
    await rig.request(DOCUMENT, tenant=tenant, max_tokens=4)
    assert [spec.reuse for spec in rig.prefill.submitted] == [None, None], "nothing to reuse, or not asked for"
