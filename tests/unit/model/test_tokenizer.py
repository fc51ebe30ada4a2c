"""Tokenizers against transformers' own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tandem.errors import UnsupportedModelError
from tandem.model.gguf_file import read_gguf
from tandem.model.gguf_tokenizer import read_gguf_tokenizer
from tandem.model.hf_folder import read_hf_tokenizer
from tandem.model.metadata import read_metadata
from tandem.model.tokenizer import Tokenizer, byte_alphabet
from tests.support.tiny_gguf import write_tiny_gguf

MARKUP = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
LONG_TEXT = (
    "In 1815, 12345678 people wrote I'LL, they're and we'd; 3.14159 * 2 = 6.28318…\n\n\n"
    "\tdef f(x):\r\n\t    return x ** 2  # four    spaces   \n"
    "Ünïcödé: naïve café, e\u0301 and \u212b, 東京は日本の首都です。 Привет, мир! مرحبا بالعالم नमस्ते 🙂👩‍👩‍👧‍👦🇨🇭 "
    "\u200b\ufeff\x00\x7f https://example.org/a?b=c&d=e%20f "
    '{"json": [1, null, true]} <not|special> <|im_start <|endoftext|>tail'
) * 16 + MARKUP


@pytest.fixture(scope="module")
def default_tokenizer(default_model_path: Path) -> Tokenizer:
    return read_metadata("default", default_model_path.parent).tokenizer


@pytest.fixture(scope="module")
def reference(default_model_path: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(default_model_path.parent, gguf_file=default_model_path.name)


@pytest.fixture(scope="module")
def known_bytes(default_tokenizer: Tokenizer) -> set[int]:
    """The model has no token for 21 byte values (rare controls, planes 4 to 11); encoding leaves them out."""
    spelled = map(default_tokenizer.token_bytes, range(default_tokenizer.vocab_size))
    return {token[0] for token in spelled if len(token) == 1}


def test_ids_of_the_default_model_equal_transformers(
    default_tokenizer: Tokenizer, reference: transformers.PreTrainedTokenizerFast
) -> None:
    ids = default_tokenizer.encode(LONG_TEXT)
    assert len(ids) > 3000
    assert ids == reference.encode(LONG_TEXT, add_special_tokens=False)
    assert default_tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_markup_of_the_default_models_template_becomes_special_tokens(
    default_tokenizer: Tokenizer, default_model_path: Path, reference: transformers.PreTrainedTokenizerFast
) -> None:
    metadata = read_metadata("default", default_model_path.parent)
    assert metadata.chat_template == reference.chat_template
    ids = default_tokenizer.encode(MARKUP)
    assert [ids.count(special) for special in (1, 2)] == [3, 2]
    assert default_tokenizer.decode(ids) == MARKUP.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert (default_tokenizer.bos_token, default_tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert default_tokenizer.vocab_size == metadata.config.vocab_size == 49152


def test_digits_stand_alone(default_tokenizer: Tokenizer) -> None:
    assert [default_tokenizer.token_bytes(token_id) for token_id in default_tokenizer.encode("x1234")] == [
        b"x", b"1", b"2", b"3", b"4",
    ]  # fmt: skip


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=60))  # no special token
def test_bytes_of_tokens_are_the_texts_bytes(default_tokenizer: Tokenizer, known_bytes: set[int], text: str) -> None:
    joined = b"".join(map(default_tokenizer.token_bytes, default_tokenizer.encode(text)))
    assert joined == bytes(value for value in text.encode() if value in known_bytes)


def test_bytes_of_special_and_unknown_ids_are_empty(default_tokenizer: Tokenizer) -> None:
    assert [default_tokenizer.token_bytes(token_id) for token_id in (0, 1, 2, 49152, 10**6)] == [b""] * 5
    assert default_tokenizer.token_bytes(49151) != b""


def test_one_character_over_several_tokens(default_tokenizer: Tokenizer) -> None:
    ids = default_tokenizer.encode("🦩")
    parts = [default_tokenizer.token_bytes(token_id) for token_id in ids]
    assert len(parts) > 1
    assert b"".join(parts) == "🦩".encode()


@pytest.mark.parametrize(("architecture", "pre"), [("qwen2", "qwen2"), ("qwen3", "qwen2"), ("llama", "llama-bpe")])
def test_ids_from_a_gguf_equal_transformers(architecture: str, pre: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, architecture, pre=pre, replaced={"tokenizer.ggml.add_bos_token": False})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    backend = theirs.backend_tokenizer
    if pre == "qwen2":  # transformers builds this one without the NFC that Qwen's own tokenizer.json has
        backend.normalizer = tokenizers.normalizers.NFC()
    ours = read_gguf_tokenizer(read_gguf(path))
    assert ours.encode(LONG_TEXT) == theirs.encode(LONG_TEXT, add_special_tokens=False)


def test_llama3_begins_plain_prompts_with_its_first_token(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", pre="llama-bpe")
    tokenizer = read_gguf_tokenizer(read_gguf(tmp_path / "tiny.gguf"))
    plain = tokenizer.encode("The dog", add_special_tokens=False)
    assert tokenizer.encode("The dog") == [0, *plain]
    assert 0 not in plain


def test_user_defined_tokens_stay_whole_and_visible(tmp_path: Path) -> None:
    import gguf

    write_tiny_gguf(tmp_path / "base.gguf", "qwen2", pre="qwen2")
    kinds = gguf.GGUFReader(tmp_path / "base.gguf").fields["tokenizer.ggml.token_type"].contents()
    kinds[1] = gguf.TokenType.USER_DEFINED
    write_tiny_gguf(tmp_path / "tiny.gguf", "qwen2", pre="qwen2", replaced={"tokenizer.ggml.token_type": kinds})
    tokenizer = read_gguf_tokenizer(read_gguf(tmp_path / "tiny.gguf"))
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.decode([1]) == "<|im_start|>"
    assert tokenizer.token_bytes(1) == b"<|im_start|>"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_folders_tokenizer_equals_transformers(family: str, tiny_model_dir: Callable[[str], Path]) -> None:
    folder = tiny_model_dir(family)
    # AutoTokenizer would put Qwen2's own rule in place of the one in tokenizer.json
    ours, theirs = read_hf_tokenizer(folder), transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.tokenizer.encode(LONG_TEXT) == theirs.encode(LONG_TEXT)
    assert ours.tokenizer.vocab_size == len(theirs)
    assert (ours.tokenizer.bos_token, ours.tokenizer.eos_token) == (theirs.bos_token, theirs.eos_token)
    assert ours.chat_template == theirs.chat_template


def test_truncation_in_a_tokenizer_file_is_not_applied() -> None:
    backend = _sentence_piece_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    assert len(Tokenizer("x", backend, None, None).encode("a a a a a")) == 5


def test_sentence_piece_spelling() -> None:
    tokenizer = Tokenizer("x", _sentence_piece_backend(), None, None)
    assert [tokenizer.token_bytes(token_id) for token_id in range(5)] == [b"", b"\n", b" a", b"b", b"  "]
    assert [tokenizer.token_bytes(5), tokenizer.token_bytes(8)] == [b"\xf0", b"<tool>"]


def test_an_unknown_decoder_is_refused_by_name() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match=r"some/tokenizer\.json.*WordPiece"):
        Tokenizer("some/tokenizer.json", backend, None, None)


def test_the_byte_alphabet_is_the_tokenizers_librarys() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for value in range(0x80):
        assert level.pre_tokenize_str(chr(value))[0][0] == byte_alphabet()[value]


def _sentence_piece_backend() -> tokenizers.Tokenizer:
    vocabulary = {"<s>": 0, "<0x0A>": 1, "▁a": 2, "b": 3, "▁▁": 4, "<0xF0>": 5, "▁": 6, "a": 7}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.add_tokens([AddedToken("<tool>", special=False)])
    return backend
