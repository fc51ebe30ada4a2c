"""What every view of a replica's cache promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.contents import block_keys
from tandem.routing.published import PublishedPrefixes
from tandem.scheduler.prefix_view import PrefixView, SentPrefixes

NUM_BLOCKS = 8
VIEWS = {
    "sent": lambda: SentPrefixes(lambda: NUM_BLOCKS),
    "published": lambda: PublishedPrefixes(lambda: NUM_BLOCKS),
}
PROMPTS = st.lists(st.integers(0, 1), max_size=6)  # a block is a token


def keys_of(token_ids):
    return block_keys(b"ns", token_ids, 1)


@pytest.fixture(params=VIEWS)
def view(request) -> PrefixView:
    return VIEWS[request.param]()


def test_what_was_sent_is_there_as_a_prefix(view):
    view.sent(keys_of([1, 2, 3]))
    assert view.num_present(keys_of([1, 2, 3])) == 3
    assert view.num_present(keys_of([1, 2, 4, 3])) == 2
    assert view.num_present(keys_of([2, 2, 3])) == 0
    assert view.num_present(()) == 0


def test_clearing_forgets_everything(view):
    view.sent(keys_of([1, 2]))
    assert set(view.clear()) == set(keys_of([1, 2]))
    assert view.num_present(keys_of([1, 2])) == 0
    assert tuple(view.clear()) == ()


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
