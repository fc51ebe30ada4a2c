"""Damaged and unsupported GGUF files end in an error that names the file, and in nothing else."""

import random
import struct
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest

from tandem.errors import ModelError, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from tandem.model.gguf_header import read_header
from tandem.model.metadata import read_metadata
from tandem.model.source import open_model
from tests.support.tiny_gguf import write_tiny_gguf

NUM_FLIPS = 1500


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    write_tiny_gguf(path, pre="llama-bpe")
    return path


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    return tmp_path / "bad.gguf"


def _read_all(path: Path) -> None:
    read_metadata(str(path), path.parent)
    source = open_model(str(path), path.parent)
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"):
        source.tensor(name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_metadata, open_model):
        with pytest.raises(ModelNotFoundError, match=r"nowhere\.gguf"):
            read(str(tmp_path / "nowhere.gguf"), tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"GG", "truncated"),
        (b"PK\x03\x04 and more of some other file", "not a GGUF file"),
        (b"GGUF\x03\x00", "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + bytes(64), "truncated or damaged"),
    ],
)
def test_what_is_not_a_whole_header(bad_file: Path, content: bytes, problem: str) -> None:
    bad_file.write_bytes(content)
    for read in (read_metadata, open_model):
        with pytest.raises(ModelFormatError, match=rf"bad\.gguf: .*{problem}"):
            read(str(bad_file), bad_file.parent)


@pytest.mark.parametrize(("version", "name"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions(bad_file: Path, version: int, name: str) -> None:
    bad_file.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(UnsupportedModelError, match=name):
        read_metadata(str(bad_file), bad_file.parent)


def test_cut_short_anywhere(good_file: Path, bad_file: Path) -> None:
    content = good_file.read_bytes()
    header_end = min(tensor.offset_bytes for tensor in read_header(good_file).tensors.values())
    rng = random.Random(5)
    for length in [*rng.sample(range(header_end), 150), header_end, len(content) // 2, len(content) - 1]:
        bad_file.write_bytes(content[:length])
        with pytest.raises(ModelFormatError, match=r"bad\.gguf: "):
            _read_all(bad_file)


def test_bit_flips_in_the_header_raise_nothing_but_model_errors(good_file: Path, bad_file: Path) -> None:
    content = bytearray(good_file.read_bytes())
    header_end = min(tensor.offset_bytes for tensor in read_header(good_file).tensors.values())
    rng = random.Random(7)
    num_refused = 0
    for _ in range(NUM_FLIPS):
        position, mask = rng.randrange(header_end), 1 << rng.randrange(8)
        content[position] ^= mask
        bad_file.write_bytes(content)
        content[position] ^= mask
        try:
            _read_all(bad_file)
        except ModelError as error:
            assert "bad.gguf" in str(error), (position, mask)
            num_refused += 1
    assert num_refused > NUM_FLIPS // 3


WRONG_VALUES: list[tuple[str, Any, type[ModelError]]] = [
    ("llama.block_count", None, ModelFormatError),
    ("llama.block_count", "two", ModelFormatError),
    ("llama.block_count", 3, ModelFormatError),
    ("llama.block_count", 1, ModelFormatError),
    ("llama.block_count", [2, 2], ModelFormatError),
    ("llama.embedding_length", 63, ModelFormatError),
    ("llama.attention.head_count", 0, ModelFormatError),
    ("llama.attention.head_count_kv", 3, ModelFormatError),
    ("llama.attention.head_count", True, ModelFormatError),
    ("llama.attention.layer_norm_rms_epsilon", float("nan"), ModelFormatError),
    ("llama.rope.freq_base", "10000", ModelFormatError),
    ("llama.rope.freq_base", -1.0, ModelFormatError),
    ("llama.rope.dimension_count", 8, UnsupportedModelError),
    ("llama.rope.scaling.type", "yarn", UnsupportedModelError),
    ("llama.expert_count", 8, UnsupportedModelError),
    ("split.count", 2, UnsupportedModelError),
    ("general.alignment", 33, ModelFormatError),
    ("tokenizer.ggml.model", "llama", UnsupportedModelError),
    ("tokenizer.ggml.pre", "tekken", UnsupportedModelError),
    ("tokenizer.ggml.pre", 7, ModelFormatError),
    ("tokenizer.ggml.tokens", None, ModelFormatError),
    ("tokenizer.ggml.tokens", [1, 2, 3], ModelFormatError),
    ("tokenizer.ggml.tokens", ["a", "a"], ModelFormatError),
    ("tokenizer.ggml.tokens", [f"token{number}" for number in range(500)], ModelFormatError),
    ("tokenizer.ggml.token_type", [1, 1], ModelFormatError),
    ("tokenizer.ggml.merges", ["notapair"], ModelFormatError),
    ("tokenizer.ggml.merges", ["not there"], ModelFormatError),
    ("tokenizer.ggml.eos_token_id", 384, ModelFormatError),
    ("tokenizer.ggml.bos_token_id", "0", ModelFormatError),
    ("tokenizer.chat_template", 5, ModelFormatError),
]


@pytest.mark.parametrize(("key", "value", "error"), WRONG_VALUES, ids=lambda part: str(part)[:40])
def test_wrong_metadata_is_named(bad_file: Path, key: str, value: Any, error: type[ModelError]) -> None:
    write_tiny_gguf(bad_file, replaced={key: value})
    with pytest.raises(error, match=r"bad\.gguf: "):
        read_metadata(str(bad_file), bad_file.parent)


def test_another_architecture_is_named(bad_file: Path) -> None:
    writer = gguf.GGUFWriter(bad_file, "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (read_metadata, open_model):
        with pytest.raises(UnsupportedModelError, match="'gemma3' is not built; llama, qwen2, qwen3 are"):
            read(str(bad_file), bad_file.parent)


def test_a_quantisation_that_is_not_built_is_named(good_file: Path, bad_file: Path) -> None:
    _write_with_tensor_type(good_file, bad_file, "blk.0.attn_output.weight", gguf.GGMLQuantizationType.I32)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_output\.weight.*I32"):
        open_model(str(bad_file), bad_file.parent)


def test_a_quantisation_that_nobody_knows_is_named(good_file: Path, bad_file: Path) -> None:
    _write_with_tensor_type(good_file, bad_file, "blk.0.attn_output.weight", 9999)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_output\.weight.*9999"):
        open_model(str(bad_file), bad_file.parent)


def _write_with_tensor_type(good: Path, bad: Path, name: str, kind: int) -> None:
    content = bytearray(good.read_bytes())
    record = struct.pack("<Q", len(name)) + name.encode()
    type_at = content.index(record) + len(record) + 4 + 2 * 8
    struct.pack_into("<I", content, type_at, kind)
    bad.write_bytes(content)


@pytest.fixture(autouse=True)
def _no_overflow_warnings() -> Any:
    """A flipped bit in a scale makes numpy warn of infinities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
