"""Documents that were in one prompt are reused in another, wherever they stand, and no exact answer changes."""

import random
import time
from collections.abc import Sequence

import pytest

from tandem.client import Answer, Client, Reuse, Span, Usage

PATIENCE_S = 60.0
RATIO = 0.15
NUM_DOCUMENT_TOKENS = 160


def tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=length)


FIRST, SECOND = tokens(101, NUM_DOCUMENT_TOKENS), tokens(102, NUM_DOCUMENT_TOKENS)


class Prompt:
    """An opening that no other prompt has, documents, and a question."""

    def __init__(self, number: int, documents: Sequence[list[int]]) -> None:
        self.token_ids = tokens(number, 8)
        spans = []
        for document in documents:
            spans.append(Span(len(self.token_ids), len(self.token_ids) + len(document)))
            self.token_ids += document
        self.token_ids += tokens(1000 + number, 12)
        self.reuse = Reuse(RATIO, spans)


@pytest.fixture
def client(system):
    with Client(system.gateway) as client:
        yield client


def ask(client: Client, prompt: Prompt, salt: str, reuse: Reuse | None = None, n: int = 1) -> Sequence[Answer]:
    return client.generate_once(
        prompt.token_ids, cache_salt=salt, reuse=reuse, n=n, max_tokens=12, temperature=0.0, ignore_eos=True
    )


def ask_until_reused(client: Client, salt: str, numbers: range, n: int = 1) -> tuple[Prompt, Sequence[Answer]]:
    """Entries are built behind the requests that lack them; each prompt begins like no other."""
    until_s = time.monotonic() + PATIENCE_S
    for number in numbers:
        prompt = Prompt(number, (SECOND, FIRST))
        answers = ask(client, prompt, salt, prompt.reuse, n)
        if answers[0].usage.num_approximate_tokens or time.monotonic() > until_s:
            return prompt, answers
        time.sleep(0.1)
    raise AssertionError("nothing was reused")


def refreshed_usage(gateway: str, salt: str) -> Usage:
    """Of an answer whose approximate KV was computed anew, if the deployment does that."""
    with Client(gateway) as client:
        ask(client, Prompt(1, (FIRST, SECOND)), salt, Prompt(1, (FIRST, SECOND)).reuse)
        _, (answer,) = ask_until_reused(client, salt, range(2, 50))
    return answer.usage


def test_documents_are_reused_in_another_order_and_exact_answers_stay(client):
    cold = ask(client, Prompt(1, (FIRST, SECOND)), "shop", Prompt(1, (FIRST, SECOND)).reuse)[0]
    assert cold.usage.num_approximate_tokens == 0
    prompt, (answer,) = ask_until_reused(client, "shop", range(2, 50))
    usage = answer.usage
    assert usage.num_approximate_tokens > NUM_DOCUMENT_TOKENS
    assert usage.num_refreshed_tokens == 0, "that is off unless it is asked for"
    assert [segment.start for segment in usage.segments] == [span.start for span in prompt.reuse.segments]
    for segment in usage.segments:
        parts = (segment.num_exact, segment.num_approximate, segment.num_computed)
        assert sum(parts) == NUM_DOCUMENT_TOKENS
        assert segment.num_computed >= RATIO * NUM_DOCUMENT_TOKENS
    (before,) = ask(client, prompt, "cold")
    (after,) = ask(client, prompt, "shop")
    assert after.token_ids == before.token_ids
    assert after.usage.num_approximate_tokens == 0
    assert after.usage.num_cached_tokens < prompt.reuse.segments[0].start + 16, "approximate blocks are nobody else's"


def test_answers_to_one_prompt_share_what_was_reused(client):
    ask(client, Prompt(51, (FIRST, SECOND)), "answers", Prompt(51, (FIRST, SECOND)).reuse)
    _, answers = ask_until_reused(client, "answers", range(52, 99), n=3)
    assert len({answer.usage.num_approximate_tokens for answer in answers}) == 1
    assert len({answer.token_ids for answer in answers}) == 1


def test_another_salts_documents_are_not_found(client):
    ask(client, Prompt(101, (FIRST, SECOND)), "mine", Prompt(101, (FIRST, SECOND)).reuse)
    ask_until_reused(client, "mine", range(102, 149))
    prompt = Prompt(150, (SECOND, FIRST))
    (theirs,) = ask(client, prompt, "theirs", prompt.reuse)
    assert (theirs.usage.num_cached_tokens, theirs.usage.num_approximate_tokens) == (0, 0)
    assert {segment.num_computed for segment in theirs.usage.segments} == {NUM_DOCUMENT_TOKENS}
