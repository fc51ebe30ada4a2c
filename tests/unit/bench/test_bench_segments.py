"""`tandem bench segments`: which prompts are asked, what counts as ready, and what is made of the replies."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.approx.item import Text
from bench.plots import plot
from bench.reading import read_result
from bench.results import provenance, write_result
from bench.reuse.asking import Question, Reply
from bench.reuse.display import segments_table
from bench.reuse.documents import DocumentPrompt, Tokens, drawer, drawn, written
from bench.reuse.gains import gains
from bench.reuse.results import SegmentsResult
from bench.reuse.sights import MAX_PROBES, Asker, Sight, SightPlan, SightSample, ask_round
from bench.workloads.tokens import TokenRange
from tandem.cli.main import main
from tandem.errors import NotReadyError
from tandem.rpc.gateway_values import SegmentUsage
from tests.unit.bench.test_bench_reuse import printed

DRAW = drawer(TokenRange(10, 500), "run")
PLAN = SightPlan(tuple(drawn(3, 2, 200, DRAW)), (0.1, 0.3), "run")
NUM_TOKENS = 16 + 2 * 200 + 20


class System:
    """Computes 1 ms a token and builds what a prompt lacked `delay` prompts later. A ratio is of the found ones."""

    def __init__(self, delay: int = 2) -> None:
        self.questions: list[Question] = []
        self._delay = delay
        self._built: dict[tuple[str, Tokens], int] = {}  # by salt and document: from which prompt on

    def ask(self, question: Question) -> Reply:
        self.questions.append(question)
        usages = [self._usage(question, span.start, span.end) for span in (question.reuse or NO_REUSE).segments]
        num_approximate = sum(usage.num_approximate for usage in usages)
        return Reply(float(len(question.token_ids) - num_approximate), (1,), 0, num_approximate, tuple(usages))

    def _usage(self, question: Question, start: int, end: int) -> SegmentUsage:
        key = question.salt, tuple(question.token_ids[start:end])
        since = self._built.setdefault(key, len(self.questions) + self._delay)
        num_computed = round(question.reuse.ratio * (end - start)) if len(self.questions) >= since else end - start
        return SegmentUsage(start, end, 0, end - start - num_computed, num_computed)


class NO_REUSE:  # noqa: N801 - stands where a `Reuse` does
    segments: Sequence[object] = ()


def asked(plan: SightPlan = PLAN, system: System | None = None) -> tuple[list[SightSample], System, list[float]]:
    system, pauses = system or System(), list[float]()
    asker = Asker(system.ask, pauses.append, DRAW)
    samples = [sample for number in range(len(plan.prompts)) for sample in ask_round(plan, number, asker)]
    return samples, system, pauses


def test_a_prompt_is_its_parts_and_names_its_documents():
    prompt = DocumentPrompt((1,), ((2, 2), (3,), (4, 4)), (9,))
    question = prompt.ask("s", ratio=0.1, turn=2, opening=(7, 7))
    assert question.token_ids == (7, 7, 1, 4, 4, 2, 2, 3, 9)
    assert [(span.start, span.end) for span in question.reuse.segments] == [(3, 5), (5, 7), (7, 8)]
    assert (question.reuse.ratio, question.salt, question.num_output_tokens) == (0.1, "s", 1)
    assert prompt.ask("s").reuse is None
    assert len(prompt.ask("s").token_ids) == prompt.num_tokens == 7


def test_written_parts_are_tokenised_alone():
    (prompt,) = written([Text("n", "in", ("ab", "c"), "q", ())], lambda part: part.encode())
    assert (prompt.instruction, prompt.documents, prompt.question) == (
        tuple(b"in"),
        (tuple(b"ab"), tuple(b"c")),
        (113,),
    )


def test_drawn_prompts_have_documents_of_their_own():
    documents = [document for prompt in drawn(2, 3, 70, DRAW) for document in prompt.documents]
    assert len({*documents}) == 6
    assert {len(document) for document in documents} == {70}


def test_every_round_asks_every_case_and_waits_for_the_entries():
    samples, system, pauses = asked()
    names = [[sample.case.name for sample in samples if sample.number == number] for number in range(3)]
    first, low, high = "first sight", "entries ready, r = 0.1", "entries ready, r = 0.3"
    assert names == [
        [first, low, high, "exact, cold"],
        ["exact, cold", first, high, low],
        [first, low, high, "exact, cold"],
    ]
    assert len(pauses) == 3 * 2, "of two probes a round the second finds what the first sight lacked"
    assert len(system.questions) == len(samples) + len(pauses)


def test_the_exact_prompt_is_cold_and_nothing_but_documents_repeats():
    _, system, _ = asked()
    cold = [question for question in system.questions if question.reuse is None]
    assert len({question.salt for question in cold}) == 3
    for question in cold:
        others = [each for each in system.questions if each.salt == question.salt]
        assert others == [question]
    shared = [each for each in system.questions if each.salt == "run/1/documents"]
    beginnings = {each.token_ids[:216] for each in shared}
    assert len(beginnings) == 4, "two probes, first sight and the prompt itself, which is asked twice"


def test_what_is_never_reused_is_said():
    with pytest.raises(NotReadyError, match=f"{MAX_PROBES} prompts"):
        asked(system=System(delay=1000))


def test_documents_that_are_found_in_part_are_not_ready():
    class Partly(System):
        def _usage(self, question: Question, start: int, end: int) -> SegmentUsage:
            num_approximate = 100 if len(self.questions) < 4 else 170
            return SegmentUsage(start, end, 0, num_approximate, end - start - num_approximate)

    _, _, pauses = asked(SightPlan(PLAN.prompts[:1], PLAN.ratios, "run"), Partly())
    assert len(pauses) == 3


def result() -> SegmentsResult:
    samples, _, _ = asked()
    counted = [sample for sample in samples if sample.number]
    return SegmentsResult(provenance(), "tiny", "random tokens", 2, gains({"semi-pd": counted}))


def test_gains_are_the_rounds_ratios_and_tokens_add_up():
    series = {each.case.name: each for each in result().series}
    assert list(series) == ["exact, cold", "first sight", "entries ready, r = 0.1", "entries ready, r = 0.3"]
    low = series["entries ready, r = 0.1"]
    assert (low.num_approximate, low.num_computed) == ((360, 360), (NUM_TOKENS - 360,) * 2)
    assert low.gain.median == pytest.approx(NUM_TOKENS / (NUM_TOKENS - 360))
    assert series["first sight"].gain.median == 1.0
    assert series["first sight"].case.sight is Sight.FIRST


def test_a_result_is_read_shown_and_plotted(tmp_path):
    kept = result()
    write_result(tmp_path / "s.json", kept, SegmentsResult)
    assert read_result(tmp_path / "s.json") == kept
    shown = printed(segments_table(kept))
    assert "5.74 (5.74 to 5.74)" in shown
    assert "2 documents a prompt, random tokens" in shown
    assert plot(kept, tmp_path, "s") == (tmp_path / "s-segments.png",)
    assert (tmp_path / "s-segments.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["openai:http://127.0.0.1:1"], "is no Tandem"),
        (["--document-tokens", "4000"], "tokens of context"),
        (["--document-tokens", "64", "--documents", "2", "--ratios", "0.1,1"], "each is from 0 to below 1"),
        (["--musique", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(arguments, says, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(main, ["bench", "segments", *arguments, "--model", str(tiny_model_dir("llama"))])
    assert answer.exit_code == 1
    assert says in answer.output
    assert list(Path.cwd().iterdir()) == []
