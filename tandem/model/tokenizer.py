"""Text to token ids and back, over a `tokenizers.Tokenizer`. No torch here."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import tokenizers

from tandem.errors import UnsupportedModelError

_METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Spelling(Enum):
    """How a vocabulary spells bytes."""

    BYTE_LEVEL = auto()  # each byte as one printable character
    SENTENCE_PIECE = auto()  # U+2581 for a space, <0x0A> for a byte


def byte_alphabet() -> list[str]:
    """The character that stands for each byte value in a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 characters stand for themselves; the others get characters from U+0100 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    spare = iter(range(256, 512))
    return [chr(value if value in printable else next(spare)) for value in range(256)]


_BYTE_OF = {character: value for value, character in enumerate(byte_alphabet())}


@dataclass(frozen=True, slots=True)
class PlacedTokens:
    """Token ids, and for each the text's characters ``start .. end - 1`` that it is of.

    Places rise. Tokens that are parts of one character have that character's; one that stands for nothing in the text
    has an empty place.
    """

    token_ids: list[int]
    places: list[tuple[int, int]]


class Tokenizer:
    """A vocabulary with its rules. `bos_token` and `eos_token` are texts, as chat templates want them."""

    def __init__(
        self, origin: str, backend: tokenizers.Tokenizer, bos_token: str | None, eos_token: str | None
    ) -> None:
        """`origin` names the file in errors. UnsupportedModelError: a decoder whose bytes are not known."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spelling = _spelling(origin, backend)
        self._added = backend.get_added_tokens_decoder()
        self._bytes_of: dict[int, bytes] = {}  # of the tokens that were asked for so far
        self.bos_token = bos_token
        self.eos_token = eos_token

    @property
    def vocab_size(self) -> int:
        """Tokens that there are; a model may have rows for more."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; the text of a special token becomes its id.

        `add_special_tokens` puts what the model wants around a plain prompt (Llama 3's first token); a rendered chat
        template has it already.
        """
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_placed(self, text: str, *, add_special_tokens: bool = True) -> PlacedTokens:
        """As `encode`, with where each token stands in the text."""
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return PlacedTokens(encoding.ids, encoding.offsets)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text; nothing for special tokens and for ids that no token has."""
        known = self._bytes_of.get(token_id)
        if known is None:
            known = self._bytes_of[token_id] = self._spelled(token_id)
        return known

    def _spelled(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return b"" if added.special else added.content.encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._spelling is _Spelling.BYTE_LEVEL:
            return b"".join(_byte_level_bytes(token))
        return _sentence_piece_bytes(token)


def _byte_level_bytes(token: str) -> Iterator[bytes]:
    for character in token:
        value = _BYTE_OF.get(character)
        yield character.encode() if value is None else bytes((value,))


def _sentence_piece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(_METASPACE, " ").encode()


def _spelling(origin: str, backend: tokenizers.Tokenizer) -> _Spelling:
    decoder = backend.decoder
    kinds = set() if decoder is None else set(_kinds(json.loads(decoder.__getstate__())))
    if "ByteLevel" in kinds:
        return _Spelling.BYTE_LEVEL
    if kinds & {"Metaspace", "ByteFallback"}:
        return _Spelling.SENTENCE_PIECE
    raise UnsupportedModelError(
        f"{origin}: decoder {sorted(kinds)}: byte-level and SentencePiece vocabularies are built"
    )


def _kinds(decoder: dict[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)
