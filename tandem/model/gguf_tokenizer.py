"""A GGUF's vocabulary as a tokenizer. No torch here.

A GGUF does not hold the rule that cuts text into words, only its name (``tokenizer.ggml.pre``); llama.cpp keeps the
rules in code, and so does this table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tokenizers
from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from tandem.errors import ModelFormatError, UnsupportedModelError
from tandem.model.fields import Fields
from tandem.model.gguf_file import GgufFile
from tandem.model.tokenizer import Tokenizer

_KEY = "tokenizer.ggml."
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the name in ``tokenizer.ggml.pre`` stands for."""

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    normalises: bool = False  # to Unicode's NFC
    ignores_merges: bool = False  # a word that is a token is that token
    adds_bos: bool = False  # where the file does not say


def _single_digits() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _words(number: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_WORDS % number), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3 = _Rules(lambda: _words(r"\p{N}{1,3}"), ignores_merges=True, adds_bos=True)
_RULES: Mapping[str, _Rules] = {
    "smollm": _Rules(_single_digits),
    "qwen2": _Rules(lambda: _words(r"\p{N}"), normalises=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


def read_gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """ModelFormatError: a damaged vocabulary. UnsupportedModelError: no rules for it."""
    fields = Fields(str(file.header.path), file.header.metadata)
    rules, tokens = _rules(fields), _tokens(fields, file.config.vocab_size)
    backend = _backend(fields, rules, tokens)
    _add_special_tokens(fields, backend, tokens)
    bos, eos = (_named_token(fields, tokens, name) for name in ("bos", "eos"))
    if bos is not None and fields.flag(f"{_KEY}add_bos_token", rules.adds_bos):
        backend.post_processor = _bos_first(fields, bos)
    return Tokenizer(fields.origin, backend, bos, eos)


def _rules(fields: Fields) -> _Rules:
    model = fields.text(f"{_KEY}model")
    if model != "gpt2":
        raise UnsupportedModelError(f"{fields.origin}: {_KEY}model {model!r} is not built; gpt2 (byte-level BPE) is")
    name = fields.text(f"{_KEY}pre")
    if name not in _RULES:
        raise UnsupportedModelError(f"{fields.origin}: {_KEY}pre {name!r} is not built; {', '.join(_RULES)} are")
    return _RULES[name]


def _tokens(fields: Fields, vocab_size: int) -> list[str]:
    tokens = fields.texts(f"{_KEY}tokens")
    if len(tokens) > vocab_size:
        raise ModelFormatError(f"{fields.origin}: {len(tokens)} tokens, but embeddings for {vocab_size}")
    if len(set(tokens)) != len(tokens):
        raise ModelFormatError(f"{fields.origin}: {_KEY}tokens holds a token twice")
    return tokens


def _backend(fields: Fields, rules: _Rules, tokens: list[str]) -> tokenizers.Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = _merges(fields)
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=rules.ignores_merges)
    except Exception as error:  # the Rust side raises nothing narrower
        raise ModelFormatError(f"{fields.origin}: {_KEY}merges do not fit the tokens: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = rules.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    if rules.normalises:
        backend.normalizer = normalizers.NFC()
    return backend


def _merges(fields: Fields) -> list[tuple[str, str]]:
    merges = []
    for merge in fields.texts(f"{_KEY}merges"):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise ModelFormatError(f"{fields.origin}: {_KEY}merges: {merge!r} is not two tokens")
        merges.append((left, right))
    return merges


def _add_special_tokens(fields: Fields, backend: tokenizers.Tokenizer, tokens: list[str]) -> None:
    kinds = fields.integers(f"{_KEY}token_type")
    if len(kinds) != len(tokens):
        raise ModelFormatError(f"{fields.origin}: {len(kinds)} token types for {len(tokens)} tokens")
    backend.add_special_tokens(_of_kind(TokenType.CONTROL, tokens, kinds))
    backend.add_tokens(_of_kind(TokenType.USER_DEFINED, tokens, kinds))


def _of_kind(wanted: TokenType, tokens: list[str], kinds: list[int]) -> list[AddedToken]:
    special = wanted is TokenType.CONTROL
    chosen = (token for token, kind in zip(tokens, kinds, strict=True) if kind == wanted)
    return [AddedToken(token, special=special, normalized=False) for token in chosen]


def _bos_first(fields: Fields, bos: str) -> processors.PostProcessor:
    token_id = fields.integer(f"{_KEY}bos_token_id")
    try:
        return processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, token_id)])
    except Exception as error:  # the Rust side raises nothing narrower
        raise ModelFormatError(f"{fields.origin}: {bos!r} cannot begin every text: {error}") from error


def _named_token(fields: Fields, tokens: list[str], name: str) -> str | None:
    token_id = fields.optional_integer(f"{_KEY}{name}_token_id")
    if token_id is None:
        return None
    if not 0 <= token_id < len(tokens):
        raise ModelFormatError(f"{fields.origin}: {_KEY}{name}_token_id is {token_id}, there are {len(tokens)} tokens")
    return tokens[token_id]
