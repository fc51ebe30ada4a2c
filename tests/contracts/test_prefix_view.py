"""What every view of a replica's cache promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.cache_store import CacheNews
from tandem.kv.contents import block_keys
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.prefix_view import PrefixView

NUM_BLOCKS = 8
VIEWS = {"published": lambda: PublishedPrefixes(lambda: NUM_BLOCKS, PublishedBlocks(lambda: NUM_BLOCKS))}
PROMPTS = st.lists(st.integers(0, 1), max_size=6)  # a block is a token


def keys_of(token_ids):
    return block_keys(b"ns", token_ids, 1)


def news(*events):
    return CacheNews(events, None, 1)


def stored(keys):
    return news(*(BlockStored(b"ns", b"ns", key) for key in keys))


@pytest.fixture(params=VIEWS)
def view(request) -> PrefixView:
    return VIEWS[request.param]()


def test_what_was_sent_is_there_as_a_prefix(view):
    view.sent(keys_of([1, 2, 3]))
    assert view.num_present(keys_of([1, 2, 3])) == 3
    assert view.num_present(keys_of([1, 2, 4, 3])) == 2
    assert view.num_present(keys_of([2, 2, 3])) == 0
    assert view.num_present(()) == 0


def test_what_memd_tells_is_there_until_it_tells_otherwise(view):
    keys = keys_of([1, 2, 3])
    assert set(view.hear(stored(keys))) == set(keys)
    assert view.num_present(keys) == 3
    assert list(view.hear(news(BlockRemoved(keys[2])))) == [keys[2]]
    assert set(view.hear(news(CacheCleared()))) == set(keys[:2])
    assert view.num_present(keys) == 0


def test_what_was_not_computed_is_not_there(view):
    keys = keys_of([1, 2, 3])
    view.sent(keys)
    assert list(view.hear(stored(keys[:1]))) == [], "it was there, as one that will be"
    assert set(view.ended(keys)) == set(keys[1:])
    assert view.num_present(keys) == 1


@pytest.mark.parametrize("heard_first", [True, False])
def test_what_was_computed_is_there_before_memd_tells_and_after(view, heard_first):
    keys = keys_of([1, 2, 3])
    view.sent(keys)
    for step in (view.hear, view.computed) if heard_first else (view.computed, view.hear):
        assert list(step(stored(keys) if step == view.hear else keys)) == []
        assert view.num_present(keys) == 3
    assert set(view.hear(news(BlockRemoved(keys[2])))) == {keys[2]}
    assert view.num_present(keys) == 2, "memd has told of all of it: what it removes is gone"


def test_what_was_computed_and_cleared_is_not_there(view):
    keys = keys_of([1, 2])
    view.sent(keys)
    view.computed(keys)
    assert set(view.hear(news(CacheCleared()))) == set(keys)
    assert view.num_present(keys) == 0


@pytest.mark.parametrize("name", VIEWS)
@given(prompts=st.lists(PROMPTS, max_size=30))
def test_what_changed_is_what_is_said_to_have_changed(name, prompts):
    view = VIEWS[name]()
    everything = {key for prompt in prompts for key in keys_of(prompt)}
    for prompt in prompts:
        before = {key for key in everything if view.num_present((key,))}
        changed = view.sent(keys_of(prompt))
        after = {key for key in everything if view.num_present((key,))}
        assert set(changed) == before ^ after
        assert len(after) <= NUM_BLOCKS
