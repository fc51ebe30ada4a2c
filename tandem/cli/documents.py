"""Documents that operators name, as the prompts that they begin."""

from dataclasses import dataclass
from pathlib import Path

from tandem.client import Client
from tandem.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text as tokens, as a prompt would begin with it."""

    path: Path
    token_ids: tuple[int, ...]


def read_document(client: Client, path: Path, *, as_system: bool) -> Document:
    """InvalidRequestError, with the file's name: unreadable, no text, empty, longer than the context."""
    text = _text(path)
    source = [{"role": "system", "content": text}] if as_system else text
    token_ids = client.tokenize(source)
    longest = client.model_info().max_context_tokens - 1
    if len(token_ids) > longest:
        raise InvalidRequestError(str(path), f"has {len(token_ids)} tokens, and the context holds {longest}; split it")
    return Document(path, token_ids)


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(str(path), f"is no UTF-8 text: byte {error.start}") from error
    if not text:
        raise InvalidRequestError(str(path), "is empty")
    return text
