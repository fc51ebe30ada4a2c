"""Prompts made of documents and a question, as retrieval makes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.approx.item import Encode, Text
from bench.reuse.asking import Question
from bench.workloads.request import Span as DrawnSpan
from bench.workloads.tokens import TokenRange, span_tokens
from tandem.rpc.gateway_values import Reuse
from tandem.types import Span

INSTRUCTION_TOKENS, QUESTION_TOKENS = 16, 20  # of drawn prompts: about what MuSiQue's have

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DocumentPrompt:
    """Its parts. Every document is a segment, and has the same tokens wherever it stands."""

    instruction: Tokens
    documents: tuple[Tokens, ...]
    question: Tokens

    @property
    def num_tokens(self) -> int:
        """Of the whole prompt, without an opening."""
        return len(self.instruction) + sum(map(len, self.documents)) + len(self.question)

    def ask(self, salt: str, *, ratio: float | None = None, turn: int = 0, opening: Tokens = ()) -> Question:
        """The documents begin with number `turn`. With a `ratio` they may be reused wherever they stood before."""
        start = turn % len(self.documents)
        token_ids, spans = [*opening, *self.instruction], []
        for document in (*self.documents[start:], *self.documents[:start]):
            spans.append(Span(len(token_ids), len(token_ids) + len(document)))
            token_ids += document
        reuse = None if ratio is None else Reuse(ratio, spans)
        return Question((*token_ids, *self.question), num_output_tokens=1, salt=salt, reuse=reuse)


def written(texts: Sequence[Text], encode: Encode) -> list[DocumentPrompt]:
    """Every part is tokenised alone."""
    return [
        DocumentPrompt(
            tuple(encode(text.instruction)),
            tuple(tuple(encode(document)) for document in text.documents),
            tuple(encode(text.question)),
        )
        for text in texts
    ]


def drawn(
    count: int, num_documents: int, document_tokens: int, part: Callable[[str, int], Tokens]
) -> list[DocumentPrompt]:
    """Of random tokens: `part` draws so many for a name."""
    return [
        DocumentPrompt(
            part(f"{number}/instruction", INSTRUCTION_TOKENS),
            tuple(part(f"{number}/document/{place}", document_tokens) for place in range(num_documents)),
            part(f"{number}/question", QUESTION_TOKENS),
        )
        for number in range(count)
    ]


def drawer(tokens: TokenRange, salt: str) -> Callable[[str, int], Tokens]:
    """Random tokens by name; another `salt` draws others."""
    return lambda name, count: tuple(span_tokens(DrawnSpan(name, count), tokens, salt))
