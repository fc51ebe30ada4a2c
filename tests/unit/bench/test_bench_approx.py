"""`tandem bench approx`: its items, its numbers, and what must hold between its cases."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench.approx.cases import AT_EACH_RATIO, Case, Method, cases_of
from bench.approx.item import Item, Text, make_item
from bench.approx.measure import measure
from bench.approx.model import ApproxModel, room_for
from bench.approx.musique import read_musique
from bench.approx.plots import plot_approx
from bench.approx.record import ItemRecord, Outcome, Stage, StageOutcome
from bench.approx.results import ApproxResult
from bench.approx.settings import Settings
from bench.approx.statistics import interval, mean, median
from bench.approx.summary import summarise
from bench.approx.synthetic import synthetic
from bench.reading import read_result
from tandem.cli.main import main
from tandem.clock import ManualClock
from tandem.errors import ConfigError
from tandem.model.source import open_model
from tandem.reuse.refresh import RefreshPolicy
from tests.support.paged_decoder import one_thread

SETTINGS = Settings(
    ratios=(0.0, 0.3, 1.0), answer_tokens=6, chunk_tokens=64, refresh=RefreshPolicy(4, 8), num_refreshes=1
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def letters(text: str) -> list[int]:
    """A token a character."""
    return [3 + ord(character) % 300 for character in text]


def items(count: int) -> list[Item]:
    return [
        make_item(
            Text(
                name=f"item {number}",
                instruction="Read: ",
                documents=tuple(f"document {number * 7 + part} " * 6 for part in range(3)),
                question=f"question {number}?",
                choices=(" yes", " no", " so"),
            ),
            letters,
        )
        for number in range(count)
    ]


def test_a_document_has_the_same_tokens_wherever_it_stands() -> None:
    item = make_item(Text("n", "ab", ("cde", "f"), "gh", (" i",)), letters)
    assert item.token_ids == tuple(letters("abcdefgh"))
    assert [(span.start, span.end) for span in item.spans] == [(2, 5), (5, 6)]


def test_synthetic_items_need_two_documents_and_are_the_same_each_time() -> None:
    made = synthetic(30, 5)
    assert made == synthetic(30, 5) != synthetic(30, 6)
    for text in made:
        right = text.choices[0].strip()
        assert len(set(text.choices)) == 4
        telling = [document for document in text.documents if right in document]
        if text.name.startswith("alias"):
            ship = text.question.split("The ship ")[1].split(" carries")[0]
            assert len(telling) == 1
            assert ship not in telling[0]
        if text.name.startswith("override"):
            assert all("council of" not in document for document in telling)
        if text.name.startswith("order"):
            others = [[choice.strip() in document for document in text.documents] for choice in text.choices[1:]]
            last = max(index for index, document in enumerate(text.documents) if right in document)
            assert all(places.index(True) < last for places in others)


def write_questions(path: Path, num_words: int = 20) -> Path:
    questions = [
        {
            "question": f"Who is {number}?",
            "answers": [f"name {number}"],
            "ctxs": [{"text": f"{part} {number} " * num_words} for part in ("one", "two", f"name {number}")],
        }
        for number in range(6)
    ]
    path.write_text(json.dumps(questions))
    return path


def test_questions_keep_the_passage_that_answers(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "questions.json")
    texts = read_musique(path, 4, 2, 0)
    assert texts == read_musique(path, 4, 2, 0)
    for text in texts:
        assert len(text.documents) == 2
        assert any(text.choices[0].strip() in document for document in text.documents)
        assert len(set(text.choices)) == 4


def test_files_that_are_no_questions_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json.*MuSiQue|none\.json.*musique"):
        read_musique(tmp_path / "none.json", 1, 1, 0)
    (tmp_path / "other.json").write_text('[{"question": "?"}]')
    with pytest.raises(ConfigError, match=r"other\.json is not"):
        read_musique(tmp_path / "other.json", 1, 1, 0)


def test_intervals_by_hand() -> None:
    same = interval([[2.0, 4.0]] * 5, mean)
    assert (same.value, same.low, same.high) == (3.0, 3.0, 3.0)
    assert interval([[1.0], [2.0], [9.0]], median).value == 2.0
    normal = np.random.default_rng(3).normal(size=(400, 1)).tolist()
    seen = interval(normal, mean)
    assert seen.high - seen.low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def record(name: str, kl: float, picked: tuple[int, int]) -> ItemRecord:
    """KL of all methods but DHD is twice `kl`."""
    cases = cases_of((0.15,))
    outcomes = tuple(
        Outcome(case, (kl if case.method is Method.DHD else 2 * kl, 0.0), (True, False), picked[1], 50, 20.0)
        for case in cases
    )
    stages = tuple(StageOutcome(stage, (kl,), (True,)) for stage in Stage)
    return ItemRecord(name, 100, 80, picked[0], 60.0, 70.0, 5.0, 9.0, outcomes, stages)


def test_a_summary_by_hand() -> None:
    seen = summarise("set", [record("a", 0.2, (0, 0)), record("b", 0.4, (0, 1)), record("c", 0.6, (1, 0))])
    assert (seen.num_items, seen.num_answered) == (3, 2)
    by_case = {Case(case.method, case.ratio): case for case in seen.cases}
    dhd = by_case[Case(Method.DHD, 0.15)]
    assert dhd.kl_mean.value == pytest.approx(0.2)
    assert dhd.kl_max == 0.6
    assert dhd.score is not None
    assert dhd.score.value == 0.5  # of the two that full recompute answers
    assert (dhd.speedup.value, dhd.computed_share, dhd.num_agreeing_tokens) == (3.0, 0.5, 1.0)
    assert {each.method for each in seen.comparisons} == set(AT_EACH_RATIO) - {Method.DHD}
    assert all(each.kl_more.value == pytest.approx(0.2) for each in seen.comparisons)


@pytest.fixture(scope="module")
def records(tiny_model_dir) -> list[ItemRecord]:
    folder, chosen = tiny_model_dir("llama"), items(3)
    source = open_model(str(folder), folder)
    model = ApproxModel(source, room_for(chosen, SETTINGS, source.config), torch.float32)
    return measure(model, chosen, SETTINGS, ManualClock(), lambda: None)


def of(record: ItemRecord, method: Method, ratio: float) -> Outcome:
    (outcome,) = (each for each in record.outcomes if each.case == Case(method, ratio))
    return outcome


def test_everything_computed_is_at_the_noise_floor(records: list[ItemRecord]) -> None:
    for each in records:
        floor, everything = of(each, Method.FLOOR, 1.0), of(each, Method.DHD, 1.0)
        assert max(floor.kl) < 1e-6
        assert max(everything.kl) < 1e-6
        assert all(everything.agrees)
        assert everything.num_computed == each.num_tokens
        assert everything.picked == each.picked


def test_the_difference_falls_with_the_ratio(records: list[ItemRecord]) -> None:
    def kl(method: Method, ratio: float) -> float:
        return float(np.mean([of(each, method, ratio).kl for each in records]))

    assert kl(Method.POSITION, 0.0) > kl(Method.DHD, 0.0) > kl(Method.DHD, 0.3) > 100 * kl(Method.DHD, 1.0)


def test_all_methods_compute_as_many_tokens(records: list[ItemRecord]) -> None:
    for each in records:
        assert len({of(each, method, 0.3).num_computed for method in AT_EACH_RATIO}) == 1
        assert of(each, Method.POSITION, 0.0).num_computed < of(each, Method.DHD, 0.0).num_computed


def test_the_decode_stage_is_seen_behind_the_first_refresh(records: list[ItemRecord]) -> None:
    for each in records:
        kl = {stage.stage: stage.kl for stage in each.stages}
        assert {len(values) for values in kl.values()} == {SETTINGS.refresh.every_tokens}
        assert kl[Stage.NOTHING] != kl[Stage.IN_DECODE] != kl[Stage.IN_PREFILL]


def test_an_item_that_does_not_fit_is_refused(tiny_model_dir) -> None:
    folder = tiny_model_dir("llama")
    long = [make_item(Text("n", "a" * 600, ("b" * 99,), "c", (" d",)), letters)]
    with pytest.raises(ConfigError, match="512 positions"):
        room_for(long, SETTINGS, open_model(str(folder), folder).config)


def test_the_command_writes_a_file_that_can_be_plotted(tiny_model_dir, tmp_path: Path) -> None:
    out, questions = tmp_path / "approx.json", write_questions(tmp_path / "questions.json")
    arguments = ["--musique", str(questions), "--items", "2", "--passages", "2", "--synthetic-items", "0"]
    words = ["bench", "approx", "--model", str(tiny_model_dir("llama")), "--ratios", "0,0.3,1", "--out", str(out)]
    ran = CliRunner().invoke(main, [*words, *arguments])
    assert ran.exit_code == 0, ran.output
    result = read_result(out)
    assert isinstance(result, ApproxResult)
    (seen,) = result.sets
    assert (seen.name, seen.num_items) == ("musique", 2)
    assert "dhd" in ran.output
    assert plot_approx(result, tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("ratios", ["0.1,much", "0.5,1.5"])
def test_bad_ratios_are_named(ratios: str) -> None:
    ran = CliRunner().invoke(main, ["bench", "approx", "--ratios", ratios])
    assert ran.exit_code == 1
    assert "ratios" in ran.output
