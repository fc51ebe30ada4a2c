"""Text from tokens: against whole-text decoding, and stop strings against a search that tries everything."""

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.gateway.detokenizer import Detokenizer, StopStrings
from tandem.model.metadata import read_metadata


class Bytes:
    """Each token is one of a list of byte strings."""

    def __init__(self, tokens):
        self.tokens = tokens

    def token_bytes(self, token_id):
        return self.tokens[token_id]


def run(tokens, stops=(), min_tokens=0):
    """The text deltas and the match, as a sequence has them."""
    detokenizer = Detokenizer(Bytes(tokens), stops, min_tokens)
    deltas = []
    for token_id in range(len(tokens)):
        step = detokenizer.push(token_id)
        deltas.append(step.text)
        if step.matched_stop is not None:
            return deltas, step.matched_stop
    step = detokenizer.finish()
    return [*deltas, step.text], step.matched_stop


def first_stop(text, stops):
    """By trying every end: the cut text and the stop string, or the text itself."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@pytest.fixture(scope="module")
def tokenizer(default_model_path):
    return read_metadata(str(default_model_path), default_model_path.parent).tokenizer


@pytest.fixture(scope="module")
def known_bytes(tokenizer):
    """Those that the vocabulary has a token for; it lacks a few that only unassigned characters need."""
    tokens = (tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size))
    return {token[0] for token in tokens if len(token) == 1}


@given(text=st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_comes_back_from_the_real_tokenizer(tokenizer, known_bytes, text):
    assume(known_bytes.issuperset(text.encode()))
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assume(all(tokenizer.token_bytes(token_id) for token_id in token_ids))  # no special token, spelt out
    detokenizer = Detokenizer(tokenizer)
    deltas = [detokenizer.push(token_id).text for token_id in token_ids] + [detokenizer.finish().text]
    assert "".join(deltas) == text
    assert all("\ufffd" not in delta for delta in deltas) or "\ufffd" in text


@given(ids=st.lists(st.integers(0, 49_151), max_size=40))
@settings(max_examples=300)
def test_any_tokens_give_what_the_real_tokenizer_decodes(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push(token_id).text for token_id in ids) + detokenizer.finish().text
    assert text == tokenizer.decode(ids)


@given(tokens=st.lists(st.binary(max_size=5), max_size=20))
def test_any_bytes_give_what_whole_decoding_gives(tokens):
    deltas, matched = run(tokens)
    assert "".join(deltas) == b"".join(tokens).decode("utf-8", "replace")
    assert matched is None


@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 80), max_size=10))
def test_characters_are_never_split(text, cuts):
    data = text.encode()
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[start:end] for start, end in itertools.pairwise(borders)]
    deltas, _ = run(tokens)
    assert "".join(deltas) == text
    sent = 0
    for token_id, delta in enumerate(deltas[:-1]):
        sent += len(delta.encode())
        waiting = sum(map(len, tokens[: token_id + 1])) - sent
        assert 0 <= waiting < 4, "whole characters are not held back"


@pytest.mark.parametrize(
    ("tokens", "deltas"),
    [
        ([b"\xe2\x82", b"\xac"], ["", "€", ""]),
        ([b"\xf0", b"\x9f", b"\x98", b"\x80"], ["", "", "", "😀", ""]),
        ([b"\xe2\x82", b"A"], ["", "\ufffdA", ""]),
        ([b"\xe2", b"\xe2\x82\xac"], ["", "\ufffd€", ""]),
        ([b"\xff"], ["\ufffd", ""]),
        ([b"\xc3"], ["", "\ufffd"]),
        ([], [""]),
    ],
)
def test_bytes_wait_until_they_are_certain(tokens, deltas):
    assert run(tokens) == (deltas, None)


STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4).map(tuple)


@given(pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12), stops=STOPS)
@settings(max_examples=500)
def test_stop_strings_against_a_search_that_tries_everything(pieces, stops):
    deltas, matched = run([piece.encode() for piece in pieces], stops)
    assert ("".join(deltas), matched) == first_stop("".join(pieces), stops)


@given(pieces=st.lists(st.text(alphabet="ab€", max_size=3), max_size=10), stops=STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces, stops):
    search = StopStrings(stops)
    sent, text = "", ""
    for piece in pieces:
        step = search.push(piece)
        if step.matched_stop is not None:
            return
        sent, text = sent + step.text, text + piece
        held = text.removeprefix(sent)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_across_tokens_and_characters():
    tokens = ["ab€".encode()[:3], "ab€".encode()[3:], b"! rest"]
    assert run(tokens, ("€!",)) == (["ab", "", ""], "€!")


def test_a_stop_string_that_only_the_end_completes():
    assert run([b"a", b"\xc3"], ("\ufffd",)) == (["a", "", ""], "\ufffd")


def test_the_longest_of_those_that_end_together():
    assert run([b"xabc"], ("c", "abc", "bc")) == (["x"], "abc")


def test_stop_strings_before_min_tokens_do_not_count():
    tokens = [b"s", b"s", b"s", b"s"]
    assert run(tokens, ("s",), min_tokens=3) == (["s", "s", ""], "s")
    assert run(tokens, ("ss",), min_tokens=3) == (["s", "s", "", ""], "ss")


def test_the_text_after_a_rest_that_was_held_back():
    assert run([b"a", b"ab", b"x"], ("aac",)) == (["", "aab", "x", ""], None)
