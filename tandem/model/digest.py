"""The fingerprint of a model's files: of what they hold, not of names or dates."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tandem.errors import ModelNotFoundError


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over each file's content, in order. ModelNotFoundError when one cannot be read."""
    total = hashlib.sha256()
    for path in paths:
        total.update(_content_digest(path))
    return total.hexdigest()


def _content_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
