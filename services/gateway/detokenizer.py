"""From tokens to text, one token at a time: whole characters only, and cut at stop strings."""

import codecs
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class TokenBytes(Protocol):
    """The part of a tokenizer that is needed here."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text; empty for one that is kept out of it."""
        ...


class TextStep(NamedTuple):
    """What one token adds. After a match the text is complete, and nothing more may be pushed.

    One is made for each token; a frozen dataclass takes more than twice as long to make.
    """

    text: str
    matched_stop: str | None = None


class StopPattern:
    """Looks for one string in a text that comes a character at a time (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._borders = _borders(pattern)
        self.num_matched = 0  # the text ends with this many of the pattern's first characters, at most

    def push(self, character: str) -> bool:
        """Whether the pattern ends with `character`."""
        while self.num_matched and self.pattern[self.num_matched] != character:
            self.num_matched = self._borders[self.num_matched - 1]
        if self.pattern[self.num_matched] == character:
            self.num_matched += 1
        return self.num_matched == len(self.pattern)


def _borders(pattern: str) -> list[int]:
    """For each prefix the length of its longest proper prefix that is its suffix too."""
    borders = [0] * len(pattern)
    length = 0
    for position in range(1, len(pattern)):
        while length and pattern[position] != pattern[length]:
            length = borders[length - 1]
        length += pattern[position] == pattern[length]
        borders[position] = length
    return borders


class StopStrings:
    """Cuts a growing text at the first stop string to be complete, the longest of those that end there.

    Text that may be the beginning of a stop string is held back. The result does not depend on where the pieces of
    the text begin and end.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._patterns = [StopPattern(text) for text in sorted(stop_strings, key=len, reverse=True)]
        self._held = ""

    def push(self, text: str) -> TextStep:
        """What can be said of the text so far."""
        if not self._patterns:
            return TextStep(text)
        buffer = self._held + text
        for end in range(len(self._held) + 1, len(buffer) + 1):
            matched = self._match(buffer[end - 1])
            if matched is not None:
                return TextStep(buffer[: end - len(matched)], matched)
        num_held = max(pattern.num_matched for pattern in self._patterns)
        self._held = buffer[len(buffer) - num_held :]
        return TextStep(buffer[: len(buffer) - num_held])

    def flush(self) -> str:
        """What was held back: the text has ended."""
        held, self._held = self._held, ""
        return held

    def _match(self, character: str) -> str | None:
        ended = [pattern.pattern for pattern in self._patterns if pattern.push(character)]
        return ended[0] if ended else None


class Detokenizer:
    """One sequence's text. Stop strings count from the output's token number `min_tokens` on.

    The text is the tokens' bytes decoded as UTF-8. A byte becomes U+FFFD as soon as nothing that follows can make
    it valid, and not before.
    """

    def __init__(self, tokenizer: TokenBytes, stop_strings: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._undecoded = b""  # the beginning of a character
        self._stops = StopStrings(stop_strings)
        self._num_unstoppable = max(0, min_tokens - 1)

    def push(self, token_id: int) -> TextStep:
        """The text that this token makes certain."""
        text = self._decode(self._tokenizer.token_bytes(token_id))
        if self._num_unstoppable:
            self._num_unstoppable -= 1
            return TextStep(text)
        return self._stops.push(text)

    def finish(self) -> TextStep:
        """The rest, once the last token has been pushed. It too may complete a stop string."""
        step = self._stops.push(self._decode(b"", final=True))
        if step.matched_stop is not None:
            return step
        return TextStep(step.text + self._stops.flush())

    def _decode(self, token_bytes: bytes, *, final: bool = False) -> str:
        encoded = self._undecoded + token_bytes
        text, num_decoded = codecs.utf_8_decode(encoded, "replace", final)
        self._undecoded = encoded[num_decoded:]
        return text
