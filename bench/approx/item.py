"""A prompt made of documents and a question, and what may be answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.types import Span

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Item:
    """`spans` are the documents' places; of `choices`, token ids each, the first is right."""

    name: str
    token_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    choices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """An item before it is tokens; `choices` begin with the space that stands before them."""

    name: str
    instruction: str
    documents: tuple[str, ...]
    question: str
    choices: tuple[str, ...]


def make_item(text: Text, encode: Encode) -> Item:
    """Every part is tokenised alone, so that a document has the same tokens wherever it stands."""
    token_ids = [*encode(text.instruction)]
    spans = []
    for document in text.documents:
        start = len(token_ids)
        token_ids += encode(document)
        spans.append(Span(start, len(token_ids)))
    token_ids += encode(text.question)
    return Item(text.name, tuple(token_ids), tuple(spans), tuple(tuple(encode(choice)) for choice in text.choices))
