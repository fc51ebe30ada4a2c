"""Standard input as text."""

import io
import sys
from typing import TextIO


def text_stdin() -> TextIO:
    """Bytes that are not UTF-8 come through as lone surrogates, which the client refuses by the field's name."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    return sys.stdin
