"""Metrics with the label `replica`."""

import pytest

from services.gateway.addresses import in_directory
from services.gateway.frontend import Call
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared
from tandem.types import FinishReason
from tests.support.gateway_fakes import settle
from tests.support.gateway_sites import Sites

PROMPT = "the same beginning of many a prompt, " * 5


@pytest.fixture
async def sites():
    return await Sites(settings={"router": "round-robin"}).up()


def sample(sites, name, replica):
    return sites.registry.get_sample_value(f"tandem:replica_{name}", {"replica": replica})


def samples(sites, name):
    return [sample(sites, name, replica) for replica in ("/a", "/b")]


def num_series(sites, replica):
    families = list(sites.registry.collect())
    return sum(each.labels.get("replica") == replica for family in families for each in family.samples)


async def test_requests_are_counted_where_they_are(sites):
    requests = [await sites.request(PROMPT) for _ in range(3)]
    assert samples(sites, "requests_routed_total") == [2, 1]
    assert samples(sites, "requests_running") == [2, 1]
    sites.gateway.frontend.cancel(requests[0])
    sites["/b"].prefilled(ord("x"), FinishReason.LENGTH)
    assert samples(sites, "requests_running") == [1, 0]
    assert samples(sites, "requests_routed_total") == [2, 1]


async def test_what_was_predicted_stands_beside_what_was_seen(sites):
    await sites.request(PROMPT)
    sites.clock.advance(2.0)
    await sites.request(PROMPT)
    sites.clock.advance(1.0)
    sites["/a"].prefilled(ord("x"))
    await sites.request(PROMPT)  # behind one whose pace is known now
    sites.clock.advance(0.25)
    sites["/a"].prefilled(ord("x"))
    assert samples(sites, "prompt_tokens_total") == [2 * len(PROMPT), 0]
    assert samples(sites, "computed_tokens_total") == [2 * len(PROMPT), 0]
    assert samples(sites, "time_to_first_token_seconds_sum") == [3.25, 0]
    predicted_s = sample(sites, "predicted_time_to_first_token_seconds_sum", "/a")
    error_s = sample(sites, "prediction_error_seconds_total", "/a")
    assert sample(sites, "predicted_time_to_first_token_seconds_count", "/a") == 2
    assert 0 < predicted_s < 3.25
    assert error_s == pytest.approx(3.25 - predicted_s), "both were slower than predicted"


async def test_nothing_is_predicted_where_there_is_no_choice():
    sites = await Sites(names=("/a",)).up()
    await sites.request(PROMPT)
    sites["/a"].prefilled(ord("x"))
    assert sample(sites, "time_to_first_token_seconds_count", "/a") == 1
    assert sample(sites, "predicted_time_to_first_token_seconds_count", "/a") == 0


async def test_what_is_heard_of_a_cache_is_told(sites):
    keys = sites.gateway.frontend.cache_keys(list(PROMPT.encode()), Call()).keys
    told = (CacheCleared(), *(BlockStored(b"", b"", key) for key in keys))
    sites["/b"].open.hear(CacheNews(told, CachePosition(1, 7), 16))
    sites["/b"].open.hear(CacheNews((BlockRemoved(keys[-1]),), CachePosition(1, 8), 16))
    assert samples(sites, "cache_events_total") == [0, len(told) + 1]
    assert samples(sites, "known_blocks") == [0, len(keys) - 1]
    assert samples(sites, "cache_resyncs_total") == [0, 1]
    assert sample(sites, "cache_news_unix_seconds", "/b") > 0


async def test_one_that_is_lost_hands_its_requests_over_and_one_that_leaves_is_told_of_no_more(sites):
    await sites.request(PROMPT)
    assert samples(sites, "ready") == [1, 1]
    await sites["/a"].down()
    assert samples(sites, "ready") == [0, 1]
    sites.pass_time(60.0)
    assert samples(sites, "requests_running") == [0, 1]
    sites.gateway.replicas.follow([in_directory("/b")])
    await settle()
    assert sites.closed == ["/a"]
    assert num_series(sites, "/a") == 0
    assert num_series(sites, "/b") > 10
    sites["/b"].prefilled(ord("x"), FinishReason.LENGTH)
    assert sample(sites, "requests_running", "/b") == 0
