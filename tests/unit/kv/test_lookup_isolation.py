"""A lookup does the same work whatever another domain has cached, so that its time tells nothing.

Time itself is not asserted: what is compared is every line of Python that a lookup runs, in order.
"""

import gc
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from tandem.kv.store import KeyedBlock, PromptTokens
from tests.support.contents import entry, keyed_run, prompts_of
from tests.support.ledger_pool import Pool

SECRET_TEXT, OTHER_TEXT = range(500, 516), range(700, 716)  # four blocks each

Line = tuple[str, int]


def lines_of(act: Callable[[], object]) -> list[Line]:
    """Each line that runs in `act`, by file and number. No garbage is collected meanwhile: that runs others' lines."""
    seen: list[Line] = []

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object]:
        if event == "line":
            seen.append((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return seen


def claim(cached: tuple[KeyedBlock, ...], asked: tuple[KeyedBlock, ...]) -> list[Line]:
    """The work of claiming a prompt, and what of it could be copied, where `cached` is all that is there."""
    pool = Pool()
    pool.keep(*cached)
    lease_id = pool.open()
    keys = [each.key for each in asked]
    prompt = PromptTokens(asked[0].namespace, tuple(SECRET_TEXT))
    return lines_of(lambda: pool.ledger.claim_prefix(pool.holder, lease_id, keys, 0, prompt=prompt, now_s=1.0))


def find(cached: tuple[KeyedBlock, ...], asked: tuple[KeyedBlock, ...]) -> list[Line]:
    """The work of looking for a segment's entry."""
    pool = Pool(max_segment_blocks=8)
    pool.keep(*cached)
    return lines_of(lambda: pool.ledger.published.find([each.key for each in asked], now_s=1.0))


def prompt_of(domain: str, text: range) -> tuple[KeyedBlock, ...]:
    return keyed_run(prompts_of(domain), text)


@pytest.mark.parametrize(("lookup", "of"), [(claim, prompt_of), (find, entry)], ids=["prompt", "segment"])
def test_a_lookup_is_the_same_whatever_another_domain_has(lookup, of):
    asked = of("private:spy", SECRET_TEXT)
    the_same_text = lookup(of("private:victim", SECRET_TEXT), asked)
    another_text = lookup(of("private:victim", OTHER_TEXT), asked)
    assert the_same_text == another_text
    assert len(the_same_text) > 3


@pytest.mark.parametrize(("lookup", "of"), [(claim, prompt_of), (find, entry)], ids=["prompt", "segment"])
def test_a_hit_in_ones_own_domain_shows_in_the_work(lookup, of):
    """So the comparison above can fail."""
    asked = of("private:spy", SECRET_TEXT)
    assert lookup(asked, asked) != lookup(of("private:spy", OTHER_TEXT), asked)


def test_neither_form_finds_the_other_ones_text():
    """A prompt's blocks and a segment's have keys of their own, also for the same tokens of the same domain."""
    prompt, segment = prompt_of("private:a", SECRET_TEXT), entry("private:a", SECRET_TEXT)
    assert not {each.key for each in prompt} & {each.key for each in segment}
