"""Several replicas behind one gateway: who gets a request, and what becomes of it when its replica does not answer."""

import asyncio

import pytest

from services.gateway.addresses import in_directory
from services.gateway.frontend import Call
from services.gateway.tenants import OpenDirectory
from tandem.config.tenants import Quotas
from tandem.errors import DuplicateRequestError, NotFoundError, NotReadyError, QueueFullError
from tandem.kv.cache_store import CacheNews
from tandem.kv.journal import BlockStored
from tandem.routing.membership import ReplicaState
from tandem.types import FinishReason, Phase
from tests.support.gateway_fakes import read_all, settle, text_of
from tests.support.gateway_sites import Sites
from tests.support.gateway_world import EOS

LONG = "the same beginning of many a prompt, " * 5
A, B, C = map(ord, "abc")


@pytest.fixture
async def sites():
    return await Sites().up()


async def test_who_begins_alike_goes_where_that_is_computed(sites):
    first = await sites.request(LONG + "first")
    home = sites.where(first)
    followers = [await sites.request(LONG + f"follower {number}") for number in range(3)]
    assert {sites.where(each) for each in followers} == {home}
    other = await sites.request("quite another text, and a long one so that it counts" * 3)
    assert sites.where(other) is not home
    assert other.request_id in sites.where(other).held


async def test_what_memd_has_published_leads_there(sites):
    keys = sites.gateway.frontend.cache_keys(list(LONG.encode()), Call()).keys
    sites["/b"].open.hear(CacheNews(tuple(BlockStored(b"", b"", key) for key in keys), None, 16))
    for number in range(3):
        assert sites.where(await sites.request(LONG + str(number))).name == "/b"


async def test_by_turns_where_that_is_asked_for():
    sites = await Sites(settings={"router": "round-robin"}).up()
    homes = [sites.where(await sites.request(LONG)).name for _ in range(4)]
    assert homes == ["/a", "/b", "/a", "/b"]


async def test_names_and_bounds_hold_over_all():
    sites = await Sites(settings={"router": "round-robin", "max_waiting": 2, "max_running": 1}).up()
    running = [await sites.request("x", request_id=str(number)) for number in range(2)]
    assert [site.held for site in (sites["/a"], sites["/b"])] == [["0"], ["1"]]
    waiting = [await sites.request("x") for _ in range(2)]
    with pytest.raises(QueueFullError):
        await sites.request("x")
    assert sites.gateway.status.now().load.num_waiting == 2
    sites.gateway.frontend.cancel(waiting[0])
    with pytest.raises(DuplicateRequestError):
        await sites.request("x", request_id="1")
    sites.gateway.frontend.abort("1")
    assert (await read_all(running[1]))[-1].finish_reason is FinishReason.ABORT
    with pytest.raises(NotFoundError):
        sites.gateway.frontend.abort("1")


async def test_a_tenants_place_that_is_free_in_one_lets_in_what_waits_for_another():
    class Bounded(OpenDirectory):
        def quotas(self, tenant: str) -> Quotas:
            return Quotas(max_running=1)

    sites = await Sites(settings={"router": "round-robin"}, tenants=Bounded()).up()
    first, second = await sites.request("x"), await sites.request("x")
    assert (sites["/a"].held, sites["/b"].held) == ([first.request_id], [])
    sites["/a"].prefilled(EOS, FinishReason.STOP)
    await settle()
    assert sites["/b"].held == [second.request_id]
    assert sites.gateway.status.now().load.num_waiting == 0


async def test_who_is_away_keeps_what_it_has_and_gets_nothing_while_others_serve():
    sites = await Sites(settings={"router": "round-robin"}).up()
    first = await sites.request(LONG + "first")
    home = sites.where(first)
    home.prefilled(A)
    await home.down()
    others = {sites.where(await sites.request(LONG + str(number))) for number in range(3)}
    assert home not in others
    sites.pass_time(29.0)
    assert sites.where(first) is home
    await home.up()
    sites.pass_time(29.0)
    assert sites.where(first) is home, "it was back in time"
    assert home.prefill.submitted[-1].token_ids[-1] == A
    assert sites.readiness == [True]


async def test_what_a_lost_one_had_goes_on_elsewhere_from_its_last_token(sites):
    request = await sites.request(LONG, max_tokens=4)
    home = sites.where(request)
    home.prefilled(A)
    home.token(B)
    await home.down()
    sites.pass_time(30.0)
    other = sites.where(request)
    assert other is not home
    spec = other.prefilled(C)
    assert spec.token_ids == (*LONG.encode(), A, B)
    other.token(EOS, FinishReason.STOP)
    pieces = await read_all(request)
    assert text_of(pieces) == "abc"
    assert pieces[-1].usage.num_output_tokens == 4
    states = {each.name: each.state for each in sites.gateway.status.now().replicas}
    assert states == {home.name: ReplicaState.GONE, other.name: ReplicaState.JOINED}
    assert (len(home.observations.seen), len(other.observations.seen)) == (0, 1)
    await home.up()
    await home.open.leases.flush()
    assert home.store.leases == set()
    assert home.open.orchestrator.is_quiet
    assert sites.gateway.replicas.state(home.open) is ReplicaState.JOINED, "it comes back like a new one"


async def test_what_a_lost_one_says_late_changes_nothing(sites):
    """memd alone cannot be reached: the phases go on, until they hear that nobody wants it."""
    running, prompted = await sites.request(LONG), await sites.request(LONG + "more")
    home = sites.where(running)
    assert sites.where(prompted) is home
    home.prefilled(A)
    lease_id = next(iter(home.decode.held))
    home.store.away = True
    await home.open.pool.poll()
    sites.pass_time(30.0)
    other = sites.where(running)
    other.prefilled(C)
    home.token(B, lease_id=lease_id)
    home.prefilled(B)
    home.obey_aborts()
    assert [each.sequences[0].output_token_ids for each in (running, prompted)] == [[A, C], []]
    assert home.open.orchestrator.is_quiet
    home.store.away = False
    await home.open.leases.flush()
    assert home.store.leases == set()
    other.prefilled(C)
    assert len(other.decode.held) == 2


async def test_answers_that_wait_for_the_prompt_go_on_elsewhere_too(sites):
    request = await sites.request(LONG, n=3)
    home = sites.where(request)
    home.prefilled(A)
    await home.down()
    await settle()
    sites.pass_time(30.0)
    other = sites.where(request)
    assert other is not home
    for _ in range(3):
        other.prefilled(EOS, FinishReason.STOP)
    pieces = await read_all(request)
    assert {piece.index for piece in pieces if piece.finish_reason is FinishReason.STOP} == {0, 1, 2}


async def test_nobody_is_lost_where_nobody_else_serves(sites):
    requests = [await sites.request(LONG * number) for number in (1, 2)]
    await sites["/a"].down()
    await sites["/b"].down()
    assert sites.readiness == [True, False]
    homes = [sites.where(request) for request in requests]
    sites.pass_time(100.0)
    assert [sites.where(request) for request in requests] == homes
    late = await sites.request("still taken on")
    assert sites.gateway.status.now().load.num_waiting == 3
    await sites["/b"].up()
    sites.pass_time(1.0)
    assert {sites.where(request).name for request in (*requests, late)} == {"/b"}
    assert len(sites["/b"].held) == 3


async def test_who_leaves_ends_what_it_has_and_gets_nothing(sites):
    request = await sites.request(LONG)
    home = sites.where(request)
    sites.gateway.replicas.follow([in_directory(name) for name in ("/a", "/b") if name != home.name])
    assert sites.where(await sites.request(LONG)) is not home
    assert sites.gateway.replicas.state(home.open) is ReplicaState.LEAVING
    home.prefilled(A)
    home.token(EOS, FinishReason.STOP)
    assert text_of(await read_all(request)) == "a"
    assert sites.closed == []
    sites.gateway.replicas.check()
    assert sites.closed == [home.name]
    assert [replica.name for replica in sites.gateway.replicas] != [home.name]
    sites.gateway.replicas.follow(list(map(in_directory, ("/a", "/b"))))
    await home.up()
    assert len(sites.gateway.replicas.serving) == 2


async def test_who_is_listed_again_while_it_leaves_is_opened_anew(sites):
    request = await sites.request(LONG)
    home, both = sites.where(request), list(map(in_directory, ("/a", "/b")))
    sites.gateway.replicas.follow([address for address in both if address.name != home.name])
    sites.gateway.replicas.follow(both)
    assert sites.where(await sites.request(LONG)) is not home
    home.prefilled(A, FinishReason.STOP)
    assert text_of(await read_all(request)) == ""
    sites.gateway.replicas.check()
    assert sites.closed == [home.name]
    await home.up()
    assert len(sites.gateway.replicas.serving) == 2


async def test_who_leaves_and_is_lost_gives_away_what_it_has(sites):
    request = await sites.request(LONG)
    home = sites.where(request)
    sites.gateway.replicas.follow([in_directory(name) for name in ("/a", "/b") if name != home.name])
    await home.down()
    sites.pass_time(30.0)
    assert sites.where(request) is not home
    assert sites.closed == [home.name]


async def test_another_model_is_refused(sites):
    sites["/c"].store.model_digest = "another"
    sites.gateway.replicas.follow(list(map(in_directory, ("/a", "/b", "/c"))))
    await sites["/c"].up()
    assert [replica.name for replica in sites.gateway.replicas.serving] == ["/a", "/b"]
    status = {each.name: (each.state, each.is_ready) for each in sites.gateway.status.now().replicas}
    assert status["/c"] == (ReplicaState.GONE, False)
    sites["/c"].store.model_digest = ""
    await sites["/c"].up()
    assert [replica.name for replica in sites.gateway.replicas.serving] == ["/a", "/b", "/c"]


async def test_the_smallest_pool_bounds_what_is_taken_on(sites):
    sites["/c"].store.num_blocks = 24
    sites.gateway.replicas.follow(list(map(in_directory, ("/a", "/b", "/c"))))
    await sites["/c"].up()
    assert sites.gateway.frontend.model_info().max_context_tokens == 20 * 16


async def test_before_anybody_is_there_nothing_is_taken_on():
    sites = Sites(names=())
    with pytest.raises(NotReadyError):
        await sites.request("x")
    sites.gateway.replicas.follow([in_directory("/late")])
    with pytest.raises(NotReadyError):
        await sites.request("x")
    await sites["/late"].up()
    assert sites.readiness == [True]
    assert sites.where(await sites.request("x")).name == "/late"


async def test_draining_waits_for_all(sites):
    requests = [await sites.request(text) for text in (LONG, "quite another text" * 9)]
    drained = asyncio.ensure_future(sites.gateway.reception.drain(60.0))
    await settle()
    for request in requests:
        sites.where(request).prefilled(EOS, FinishReason.STOP)
        with pytest.raises(NotReadyError):
            await sites.request("x")
    await drained
    assert [text_of(await read_all(request)) for request in requests] == ["", ""]


async def test_phases_of_a_lost_one_may_still_have_decode(sites):
    """Decode alone is away: what prefill has is asked back, and what waits for decode goes on elsewhere."""
    waiting, running = await sites.request(LONG), await sites.request(LONG + "more")
    home = sites.where(waiting)
    home.lose(Phase.DECODE)
    home.prefilled(A)
    sites.pass_time(30.0)
    other = sites.where(waiting)
    assert {sites.where(each) for each in (waiting, running)} == {other}
    assert home.prefill.aborted == list(home.prefill.held)
    home.obey_aborts()
    assert home.open.orchestrator.is_quiet
    assert [spec.token_ids[-1] for spec in other.prefill.held.values()] == [A, ord("e")]
