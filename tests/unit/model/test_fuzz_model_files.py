"""Model files that were cut, altered or made to lie: an error that names the file, or what of the model is whole."""

import json
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tandem.errors import ModelError
from tandem.model.config import ModelConfig
from tandem.model.metadata import read_metadata
from tandem.model.source import open_model
from tests.support.bounds import bounded
from tests.support.fuzzing import examples
from tests.support.gguf_places import number_places
from tests.support.hostile_json import changed
from tests.support.hostile_messages import damaged
from tests.support.tiny_gguf import write_tiny_gguf

MEMORY_BYTES = 256 << 20  # the files have less than one of these MiB
CPU_S = 20.0
TEXT = "The dog's 123 naïve 東京\n"
NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 16,
    2**64 - 1,
]
TENSORS = ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight")


class Model:
    """A model's files under test, and what a good one holds."""

    def __init__(self, folder: Path, entry: Path) -> None:
        self.folder = folder
        self.entry = entry
        self.config, mapped = self.read()
        self.tensors = {name: values.clone() for name, values in mapped.items()}

    def read(self) -> tuple[ModelConfig, Mapping[str, torch.Tensor]]:
        """All that services read of it. ModelError."""
        metadata = read_metadata(str(self.entry), self.folder)
        token_ids = metadata.tokenizer.encode(TEXT)
        b"".join(map(metadata.tokenizer.token_bytes, [*token_ids, *range(metadata.tokenizer.vocab_size)]))
        source = open_model(str(self.entry), self.folder)
        tensors = {name: source.tensor(name) for name in TENSORS}
        assert source.config == metadata.config
        return source.config, tensors

    def check(self, file: Path, contents: bytes, must_load: bool = False) -> None:
        """With these contents in place of the file's: an error that names it, or the model."""
        good = file.read_bytes()
        put(file, contents)
        try:
            with bounded(MEMORY_BYTES, CPU_S):
                self._check(file.name, must_load)
        finally:
            put(file, good)

    def _check(self, name: str, must_load: bool) -> None:
        try:
            config, tensors = self.read()
        except ModelError as error:
            assert not must_load, error
            assert name in str(error) or self.entry.name in str(error)
        else:
            assert set(tensors) == set(self.tensors)
            assert config == self.config or not must_load


def put(file: Path, contents: bytes) -> None:
    """As a new file: the one before may be mapped."""
    file.unlink()
    file.write_bytes(contents)


@pytest.fixture(scope="module")
def gguf() -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny_gguf(path, pre="llama-bpe")
        yield Model(Path(folder), path)


@pytest.fixture(scope="module")
def hf(tiny_model_dir: Callable[[str], Path]) -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "tiny-hf"
        shutil.copytree(tiny_model_dir("llama"), folder)
        yield Model(folder, folder)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A flipped bit in a scale makes numpy warn of infinities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def header_end(contents: bytes) -> int:
    at, size = number_places(contents)[-1]
    return at + size


@st.composite
def lies(draw: st.DrawFn, contents: bytes, places: list[tuple[int, int]]) -> bytes:
    """A GGUF file in whose header one to three numbers are others."""
    changed_contents = bytearray(contents)
    for at, size in draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        number = draw(st.one_of(st.sampled_from(NUMBERS), st.integers(0, 2**64 - 1)))
        changed_contents[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(changed_contents)


def test_fuzz_numbers_in_a_gguf_header(gguf):
    contents = gguf.entry.read_bytes()
    end = header_end(contents)

    @examples(100)
    @given(lies(contents[:end], number_places(contents)))
    def check(bad: bytes) -> None:
        gguf.check(gguf.entry, bad + contents[end:])

    check()


def test_fuzz_a_gguf_header(gguf):
    contents = gguf.entry.read_bytes()
    end = header_end(contents)

    @examples(80)
    @given(damaged(contents[:end]))
    def check(bad: bytes) -> None:
        gguf.check(gguf.entry, bad + contents[end:])

    check()


def test_fuzz_the_data_of_a_gguf(gguf):
    contents = gguf.entry.read_bytes()
    end = header_end(contents)

    @examples(15)
    @given(st.lists(st.tuples(st.integers(end, len(contents) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def check(changes: list[tuple[int, int]]) -> None:
        bad = bytearray(contents)
        for at, value in changes:
            bad[at] = value
        gguf.check(gguf.entry, bytes(bad), must_load=True)

    check()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_fuzz_what_describes_a_model(hf, name):
    file = hf.folder / name
    contents = file.read_bytes()
    document = json.loads(contents)

    @examples(60)
    @given(st.one_of(changed(document).map(lambda value: json.dumps(value).encode()), damaged(contents)))
    @example(b"[" * 100_000)
    def check(bad: bytes) -> None:
        hf.check(file, bad)

    check()


def safetensors_parts(contents: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", contents)
    return json.loads(contents[8 : 8 + length]), contents[8 + length :]


def safetensors_header(header: Any, length_lie: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", (len(text) + length_lie) % 2**64) + text


def test_fuzz_a_safetensors_header(hf):
    file = hf.folder / "model.safetensors"
    contents = file.read_bytes()
    header, data = safetensors_parts(contents)

    @examples(100)
    @given(
        st.one_of(
            st.builds(safetensors_header, changed(header)),
            st.builds(safetensors_header, st.just(header), st.sampled_from([-1, 1, -100, 2**40, 2**63])),
            damaged(contents[: len(contents) - len(data)]),
        )
    )
    def check(bad: bytes) -> None:
        hf.check(file, bad + data)

    check()


def test_fuzz_an_index_of_safetensors(hf):
    file = hf.folder / "model.safetensors.index.json"
    header, _ = safetensors_parts((hf.folder / "model.safetensors").read_bytes())
    document = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(header, "model.safetensors")}
    file.write_text(json.dumps(document))

    @examples(30)
    @given(changed(document))
    def check(bad: Any) -> None:
        hf.check(file, json.dumps(bad).encode())

    try:
        check()
    finally:
        file.unlink()


def test_fuzz_the_data_of_safetensors(hf):
    file = hf.folder / "model.safetensors"
    contents = file.read_bytes()
    header, data = safetensors_parts(contents)
    start = len(contents) - len(data)
    spans = {name: header[name]["data_offsets"] for name in TENSORS}

    @examples(15)
    @given(st.integers(start, len(contents) - 1), st.integers(1, 255))
    def check(at: int, mask: int) -> None:
        bad = bytearray(contents)
        bad[at] ^= mask
        put(file, bytes(bad))
        _, tensors = hf.read()
        for name, (begin, end) in spans.items():
            untouched = not begin <= at - start < end
            assert (tensors[name].numpy().tobytes() == hf.tensors[name].numpy().tobytes()) == untouched, name

    try:
        check()
    finally:
        put(file, contents)
