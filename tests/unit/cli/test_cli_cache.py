"""What `tandem cache` prints; the commands themselves run in tests/e2e."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tandem.cli.cache import find_namespace, runs_table, statistics_table
from tandem.errors import InvalidRequestError, NotFoundError
from tandem.kv.cached_runs import CachedRun
from tandem.kv.store import StorageStatistics
from tandem.types import ContentKind, Fingerprint


def run(namespace: str, *, first: int = 0, num_blocks: int = 2, idle_s: float = 1.0, pinned: bool = False) -> CachedRun:
    return CachedRun(bytes.fromhex(namespace * 16), bytes(32), first, num_blocks, 0, 3, pinned, idle_s)


def lines(table) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_the_newest_prefixes_are_shown_and_all_are_counted():
    runs = [run("abcd", idle_s=9.0), run("abce", first=2, num_blocks=3, idle_s=4.2, pinned=True)]
    _, row, caption = lines(runs_table(runs, 16, limit=1))
    assert row == ["abceabceabce", "000000000000", "32-80", "3", "3", "4", "s", "prompt", "pinned"]
    assert " ".join(caption) == "2 prefixes of 5 blocks, 80 tokens, 1 not shown (--limit)"


def test_segments_are_shown_and_counted_apart():
    runs = [run("abcd"), replace(run("abce", num_blocks=3), kind=ContentKind.SEGMENT)]
    _, *rows, caption = lines(runs_table(runs, 16, limit=9))
    assert [row[-2] for row in rows] == ["prompt", "segment"]
    assert " ".join(caption) == "1 prefixes of 2 blocks, 32 tokens, 1 segments of 3 blocks"
    storage = StorageStatistics(
        Fingerprint(), 1, 9, 4, 1, 2, 2, 0, 0, 0, (), num_segment_blocks=3, max_segment_blocks=4
    )
    assert ["of", "segments", "3", "of", "4", "that", "can", "be"] in lines(statistics_table(storage))


def test_a_hit_rate_is_none_when_nothing_was_asked_for():
    storage = StorageStatistics(Fingerprint(), 1, 9, 4, 1, 2, 2, 0, 0, 0, ())
    assert ["found", "0", "tokens,", "-"] in lines(statistics_table(storage))


def test_a_namespace_is_found_by_its_beginning():
    runs = [run("abcd"), run("abcd", first=2), run("abce")]
    assert find_namespace(runs, "abcda").hex() == "abcd" * 16
    with pytest.raises(InvalidRequestError, match="abc begins 2 of them"):
        find_namespace(runs, "abc")
    with pytest.raises(NotFoundError, match="nothing is cached in a namespace ff"):
        find_namespace(runs, "ff")
