"""`tandem bench reuse` and `hits`: what is asked in which order, what is made of the replies, and the replay."""

from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.plots import plot
from bench.reading import read_result
from bench.results import WorkloadFacts, provenance, write_result
from bench.reuse.asking import Question, Reply
from bench.reuse.display import answer_table, hits_table, ttft_table
from bench.reuse.replay import Served, replay
from bench.reuse.results import HitsResult, ReuseResult, hit_rate
from bench.reuse.rounds import LEAST_TOKENS, Plan, Sample, Warmth, measure, plan_round
from bench.reuse.summary import summarise
from bench.reuse.trace import ANY_SIZE, IDLE_POOL, POOL, Replay, Text, replays, serve
from bench.workloads.request import PlannedRequest, Span
from bench.workloads.tokens import TokenRange
from tandem.cli.main import main
from tandem.kv.contents import block_keys
from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.store import KeyedBlock, PromptTokens, SequenceUpdate, StorageStatistics
from tandem.types import Fingerprint

BLOCK = 16
TOKENS = TokenRange(10, 500)
PLAN = Plan((64, 128), num_rounds=3, num_output_tokens=2, tokens=TOKENS, run_id="run")


class Cache:
    """A system that reuses prompts of one salt by whole blocks, and takes 1 ms and 0.1 ms a token that it computes."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def ask(self, question: Question) -> Reply:
        before = [each.token_ids for each in self.questions if each.salt == question.salt]
        self.questions.append(question)
        best = max((common(prompt, question.token_ids[:-1]) for prompt in before), default=0) // BLOCK * BLOCK
        return Reply(1 + (len(question.token_ids) - best) / 10, (sum(question.token_ids), 7), best)


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def test_every_round_finds_what_its_warmth_says_and_no_more():
    cache, steps = Cache(), []
    samples = measure(PLAN, cache.ask, lambda: steps.append(None))
    assert len(steps) == len(cache.questions) == PLAN.num_steps == 4 * (1 + 2 * 4)
    found = {(each.warmth, each.length): each.reply.num_cached_tokens for each in samples}
    assert found == {
        (Warmth.LEAST, LEAST_TOKENS): 0,
        **{(Warmth.COLD, length): 0 for length in PLAN.lengths},
        **{(Warmth.HALF, length): length // 2 for length in PLAN.lengths},
        **{(Warmth.CACHED, length): length - BLOCK for length in PLAN.lengths},
    }
    assert sorted({each.number for each in samples}) == [1, 2, 3]
    assert len(samples) == 3 * len(found)


def test_a_rounds_prompts_are_alike_and_other_rounds_have_others():
    cache = Cache()
    measure(PLAN, cache.ask, lambda: None)
    prompts = [each.token_ids for each in cache.questions if len(each.token_ids) == 128]
    assert len(prompts) == 4 * 3
    assert len(set(prompts)) == 4


def test_who_comes_first_changes():
    even, odd = ([(step.warmth, step.length) for step in plan_round((64, 128), number)] for number in (0, 1))
    assert [length for _, length in even[1:]] == [64] * 4 + [128] * 4
    assert [length for _, length in odd[1:]] == [128] * 4 + [64] * 4
    assert [warmth for warmth, _ in even[1:5]] == [Warmth.COLD, Warmth.CACHED, None, Warmth.HALF]
    assert [warmth for warmth, _ in odd[1:5]] == [None, Warmth.HALF, Warmth.COLD, Warmth.CACHED]


def test_savings_are_the_rounds_ratios_and_the_lines_through_their_medians():
    savings = summarise(measure(PLAN, Cache().ask, lambda: None))
    speedups = {(each.warmth, each.length): each.median for each in savings.speedups}
    assert speedups[Warmth.CACHED, 64] == pytest.approx(7.4 / 2.6)
    assert speedups[Warmth.HALF, 128] == pytest.approx(13.8 / 7.4)
    assert [each.median for each in savings.marginal_ms] == pytest.approx([1.5, 1.5])
    growth = {each.warmth: (each.at_zero_ms, each.ms_per_1000_tokens) for each in savings.growth}
    assert growth[Warmth.COLD] == pytest.approx((1, 100))
    assert growth[Warmth.HALF] == pytest.approx((1, 50))
    assert growth[Warmth.CACHED] == pytest.approx((2.6, 0))
    assert all(each.num_other_answers == 0 for each in savings.agreements)


def sample(number: int, warmth: Warmth, ttft_ms: float, *token_ids: int) -> Sample:
    length = LEAST_TOKENS if warmth is Warmth.LEAST else 64
    return Sample(number, warmth, length, Reply(ttft_ms, token_ids, 0))


def uneven_samples() -> list[Sample]:
    """Two rounds of one length; half's answers differ late, cached's from the first token on in the second round."""
    return [
        *(sample(number, Warmth.LEAST, 2.0, 1, 1) for number in (1, 2)),
        *(sample(number, Warmth.COLD, 10.0 * number, 5, 6) for number in (1, 2)),
        *(sample(number, Warmth.HALF, 8.0, 5, 7) for number in (1, 2)),
        sample(1, Warmth.CACHED, 4.0, 5, 6),
        sample(2, Warmth.CACHED, 5.0, 9, 6),
    ]


def test_answers_that_are_not_the_cold_ones_are_counted():
    savings = summarise(uneven_samples())
    counts = {each.warmth: (each.num_other_first_tokens, each.num_other_answers) for each in savings.agreements}
    assert counts == {Warmth.HALF: (0, 2), Warmth.CACHED: (1, 1)}
    assert savings.growth == ()
    (speedup,) = [each for each in savings.speedups if each.warmth is Warmth.CACHED]
    assert (speedup.lowest, speedup.median, speedup.highest) == (2.5, 3.25, 4.0)
    assert (savings.marginal_ms[0].lowest, savings.marginal_ms[0].highest) == (2.0, 3.0)


def served(*prompts: str, answer: str = "!") -> list[Served]:
    return [Served(tuple(map(ord, prompt)), tuple(map(ord, answer)), 0) for prompt in prompts]


def test_a_replay_reuses_all_that_is_there_and_computes_the_last_token():
    assert replay(served("abcdef", "abcdxx", "abcdefgh", "abcdefgh"), 2, None) == (0, 4, 6, 7)
    assert replay(served("abcdef", "abcdex", "abxxxx", "axbxxx"), 3, None) == (0, 5, 2, 1)


def test_a_replay_reuses_answers_but_for_their_last_token():
    turns = [*served("ab", answer="cdef"), *served("abcdefgh")]
    assert replay(turns, 2, None) == (0, 4)


def test_a_full_replay_gives_up_the_longest_unused_and_ends_first():
    assert replay(served("aabbc", "ddc", "aabbc"), 2, 5) == (0, 0, 4)
    assert replay(served("aabbc", "ddeec", "aabbc"), 2, 4) == (0, 0, 2)  # of the first's two blocks the second goes
    assert replay(served("aabbc", "ddc", "aabbc", "ddc"), 2, 3) == (0, 0, 2, 0)


ROOT = b"N" * 32


def through_ledger(requests: list[Served], block_size: int, num_blocks: int) -> tuple[int, ...]:
    """What memd's own ledger shares with each, its holder having nothing ahead."""
    buffer = bytearray(ledger_bytes(num_blocks, block_size))
    ledger = Ledger.create(buffer, num_blocks=num_blocks, block_size=block_size, epoch=1)
    holder = ledger.add_holder("decode", 1)
    found = []
    for lease_id, request in enumerate(requests, start=1):
        keys = block_keys(ROOT, request.prompt, block_size)
        ledger.acquire_sequence(holder, lease_id, "r", create=True, now_s=0.0)
        claimable = request.prompt[:-1]
        lease = ledger.claim_prefix(
            holder,
            lease_id,
            block_keys(ROOT, claimable, block_size),
            0,
            prompt=PromptTokens(ROOT, claimable),
            now_s=0.0,
        )
        found.append(lease.num_sealed_tokens + (lease.copy_source.num_tokens if lease.copy_source else 0))
        missing = -(-len(request.prompt) // block_size) - len(lease.blocks)
        blocks = ledger.lease_blocks(holder, missing, 0)
        publish = tuple(
            KeyedBlock(ordinal, key, parent, ROOT, request.prompt[ordinal * block_size :][:block_size])
            for ordinal, (parent, key) in enumerate(pairwise((ROOT, *keys)))
        )
        ledger.update_sequences(holder, [SequenceUpdate(lease_id, blocks, len(request.prompt), publish)], now_s=0.0)
        ledger.release_sequences([lease_id])
    ledger.check()
    return tuple(found)


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(st.lists(st.sampled_from(["aa", "bb", "cc"]), min_size=1, max_size=5), max_size=30),
    num_blocks=st.integers(6, 14),
)
def test_a_replay_is_what_the_ledger_does(prompts, num_blocks):
    """Of prompts that end within a block."""
    requests = served(*("".join(parts) + "." for parts in prompts))
    assert replay(requests, 2, num_blocks) == through_ledger(requests, 2, num_blocks)


def test_a_trace_is_asked_in_order_and_replayed_at_three_sizes():
    shared, cache = Span("shared", 40), Cache()
    requests = [PlannedRequest(number, 0.0, (shared, Span(f"own/{number}", 10)), 2) for number in range(3)]
    answers = serve(requests, Text(TOKENS, "run"), cache.ask, lambda: None)
    assert [question.token_ids for question in cache.questions] == [each.prompt for each in answers]
    assert [each.num_cached_tokens for each in answers] == [0, 32, 32]
    pool = StorageStatistics(Fingerprint(block_size=BLOCK), 1, 9, 0, 4, 0, 0, 0, 0, 0, ())
    by_name = {each.name: (each.num_blocks, each.num_cached_tokens) for each in replays(answers, pool)}
    assert by_name == {POOL: (9, (0, 40, 40)), IDLE_POOL: (5, (0, 40, 40)), ANY_SIZE: (None, (0, 40, 40))}


FACTS = WorkloadFacts("mooncake", "closed:1", 2, 1.0, 0)
RESULTS = [
    ReuseResult(provenance(), "semi-pd", "tiny", 2, summarise(measure(PLAN, Cache().ask, lambda: None))),
    HitsResult(
        provenance(), "semi-pd", "tiny", FACTS, 16, 90, 8, (40, 60), (0, 16), (Replay(ANY_SIZE, None, (0, 32)),)
    ),
]


@pytest.mark.parametrize(("result", "name"), [(RESULTS[0], "r-reuse.png"), (RESULTS[1], "r-hits.png")])
def test_a_result_is_read_as_it_was_written_and_plotted(result, name, tmp_path):
    write_result(tmp_path / "r.json", result, type(result))
    assert read_result(tmp_path / "r.json") == result
    assert plot(result, tmp_path, "r") == (tmp_path / name,)
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def printed(table: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_tables_say_what_was_reused_and_what_differs():
    assert "5.31 (5.31 to 5.31)" in printed(ttft_table(RESULTS[0]))
    assert "1.0 ms + 100.0 ms / 1,000" in printed(answer_table(RESULTS[0]))
    lines = printed(hits_table(RESULTS[1]))
    assert "16.00 %" in lines
    assert "less in 1, more in 0" in lines
    assert hit_rate((), ()) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reuse", "openai:http://127.0.0.1:1"], "is no Tandem"),
        (["reuse", "--lengths", "4000"], "none fits"),
        (["hits", "at:127.0.0.1:1"], "its pool is not known"),
        (["hits"], "pass --data PATH"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(arguments, says, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(main, ["bench", *arguments, "--model", str(tiny_model_dir("llama"))])
    assert answer.exit_code == 1
    assert says in answer.output
    assert list(Path.cwd().iterdir()) == []
