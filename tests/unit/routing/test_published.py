"""The view of a replica's cache against a naive model, and against the journal that feeds it."""

from collections import Counter
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.contents import block_keys
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared, CacheJournal
from tandem.routing.published import PublishedBlocks, PublishedPrefixes

SPACE = b"ns"
PLENTY = 1000
PROMPTS = st.lists(st.integers(0, 1), max_size=5)  # a block is a token


@cache
def _keys(token_ids):
    return block_keys(SPACE, token_ids, 1)


def keys_of(token_ids):
    return _keys(tuple(token_ids))


def stored(*keys):
    return [BlockStored(SPACE, SPACE, key) for key in keys]


def news(*events, number=1):
    return CacheNews(events, CachePosition(7, number), 1)


def view_of(num_blocks=PLENTY):
    return PublishedPrefixes(lambda: num_blocks, PublishedBlocks(lambda: num_blocks))


class Naive:
    """Sets, looked through from the first key on."""

    def __init__(self):
        self.published: set[bytes] = set()
        self.awaited: set[bytes] = set()  # computed, and not told of
        self.under_way: list[tuple[bytes, ...]] = []

    @property
    def sent(self):
        return {key for keys in self.under_way for key in keys}

    @property
    def present(self):
        return self.published | self.awaited | self.sent

    def end(self, number, *, is_computed):
        keys = self.under_way.pop(number)
        self.awaited -= set(keys) - self.sent
        if is_computed:
            self.awaited |= set(keys) - self.sent - self.published
        return keys

    def num_present(self, keys):
        return max(number for number in range(len(keys) + 1) if set(keys[:number]) <= self.present)

    def follow(self, event):
        match event:
            case BlockStored(key=key):
                self.published.add(key)
                self.awaited.discard(key)
            case BlockRemoved(key=key):
                self.published.discard(key)
            case CacheCleared():
                self.published.clear()
                self.awaited.clear()


KEYS = PROMPTS.filter(len).map(lambda prompt: keys_of(prompt)[-1])
EVENTS = st.one_of(
    KEYS.map(lambda key: BlockStored(SPACE, SPACE, key)), KEYS.map(BlockRemoved), st.just(CacheCleared())
)
STEPS = st.one_of(
    st.tuples(st.just("hear"), st.lists(EVENTS, max_size=6)),
    st.tuples(st.just("sent"), PROMPTS),
    st.tuples(st.just("ended"), st.integers(0, 10)),
    st.tuples(st.just("computed"), st.integers(0, 10)),
)


@given(steps=st.lists(STEPS, max_size=20), asked=st.lists(PROMPTS, min_size=1, max_size=3))
def test_the_longest_prefix_is_the_naive_one_and_changes_are_told(steps, asked):
    view, naive = view_of(), Naive()
    for step, what in steps:
        before, changed = naive.present, ()
        if step == "hear":
            changed = view.hear(news(*what))
            for event in what:
                naive.follow(event)
        elif step == "sent":
            changed = view.sent(keys_of(what))
            naive.under_way.append(keys_of(what))
        elif naive.under_way:
            keys = naive.end(what % len(naive.under_way), is_computed=step == "computed")
            changed = getattr(view, step)(keys)
        assert set(changed) >= before ^ naive.present
        assert set(changed) == before ^ naive.present or step == "hear", "within news a key may come and go"
        assert [view.num_present(keys_of(each)) for each in asked] == [
            naive.num_present(keys_of(each)) for each in asked
        ]


@given(prompts=st.lists(PROMPTS, max_size=40), most=st.integers(1, 5))
def test_memory_is_bounded_by_the_pool(prompts, most):
    view = view_of(most)
    everything = {key for prompt in prompts for key in keys_of(prompt)}
    for prompt in prompts:
        view.hear(news(*stored(*keys_of(prompt))))
    assert sum(view.num_present((key,)) for key in everything) == min(most, len(everything))
    for prompt in prompts:
        view.sent(keys_of(prompt))
    assert sum(view.num_present((key,)) for key in everything) <= 2 * most


@given(
    prompts=st.lists(st.tuples(PROMPTS, st.booleans()), max_size=30),
    capacity=st.integers(1, 12),
    reads=st.lists(st.integers(0, 3), min_size=30, max_size=30),
)
def test_one_that_reads_the_journal_too_late_begins_anew_and_is_right(prompts, capacity, reads):
    journal, pool, blocks = CacheJournal(capacity), Counter(), PublishedBlocks(lambda: PLENTY)
    view = PublishedPrefixes(lambda: PLENTY, blocks)

    def read():
        events = None if blocks.position is None else journal.after(blocks.position.number, PLENTY)
        if events is None:
            view.hear(CacheNews((CacheCleared(),), None, 1))
            assert blocks.position is None, "one that breaks off now must begin anew"
            events = stored(*pool)
        view.hear(CacheNews(tuple(events), CachePosition(7, journal.last_number), 1))

    for (prompt, stays), skip in zip(prompts, reads, strict=False):
        for key in keys_of(prompt):
            if stays and key not in pool:
                pool[key] = 1
                journal.note(BlockStored(SPACE, SPACE, key))
            elif not stays and pool.pop(key, 0):
                journal.note(BlockRemoved(key))
        if not skip:
            read()
    read()
    assert {key for prompt, _ in prompts for key in keys_of(prompt) if view.num_present((key,))} == set(pool)


def test_what_was_sent_counts_until_it_ends_and_then_what_was_published():
    view, keys = view_of(), keys_of([1, 1, 0])
    view.sent(keys)
    view.sent(keys[:2])
    view.hear(news(*stored(keys[0])))
    assert view.num_present(keys) == 3
    view.ended(keys)
    assert view.num_present(keys) == 2, "another one is under way"
    view.ended(keys[:2])
    assert view.num_present(keys) == 1


def test_a_block_that_is_given_away_stays_expected_of_who_is_under_way():
    view, keys = view_of(), keys_of([1, 0])
    view.hear(news(*stored(*keys)))
    view.sent(keys)
    view.hear(news(BlockRemoved(keys[1])))
    assert view.num_present(keys) == 2, "it is computed again"
    view.ended(keys)
    assert view.num_present(keys) == 1
