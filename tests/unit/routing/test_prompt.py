"""Exact prefixes and segments, counted apart."""

from tandem.kv.contents import block_keys
from tandem.routing.prompt import Prompt, PromptSegment, expected_reuse
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.reused_spans import ReusedSpan

BLOCK = 16
TOKENS = list(range(400))
KEYS = block_keys(b"prompts", TOKENS[:-1], BLOCK)
ENTRY = block_keys(b"segments", TOKENS[100:300], BLOCK)
SEGMENT = PromptSegment(ENTRY, ReusedSpan(100, 300, 16, 0.25))
PROMPT = Prompt(len(TOKENS), BLOCK, KEYS, (SEGMENT,))


def reuse(*present):
    view = PublishedPrefixes(lambda: 1000, PublishedBlocks(lambda: 1000))
    for keys in present:
        view.sent(keys)
    found = expected_reuse(PROMPT, view)
    return found.num_exact_tokens, found.num_segment_tokens, found.num_computed_tokens, len(found.certain_keys)


def test_nothing_is_there():
    assert reuse() == (0, 0, 400, len(KEYS))


def test_a_prefix_is_there():
    assert reuse(KEYS[:3]) == (48, 0, 352, len(KEYS))


def test_of_an_entry_the_head_and_a_share_are_computed_nevertheless():
    saved = 200 - 50 - 16
    assert reuse(ENTRY) == (0, saved, 400 - saved, 100 // BLOCK), "behind it nothing is published"


def test_an_entry_counts_only_behind_the_exact_prefix():
    saved = (300 - 160) - 35 - 16
    assert reuse(KEYS[:10], ENTRY) == (160, saved, 400 - 160 - saved, 100 // BLOCK)
    assert reuse(KEYS[:19], ENTRY) == (304, 0, 96, len(KEYS))


def test_part_of_an_entry_is_none():
    assert reuse(ENTRY[:-1]) == reuse()


def test_a_prompt_takes_whole_blocks():
    assert (Prompt(32, 16).num_blocks, Prompt(33, 16).num_blocks) == (2, 3)
