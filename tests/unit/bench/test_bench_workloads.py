"""Workloads: traces read, text shared, everything within the model's limits."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.workloads.arrivals import parse_arrival
from bench.workloads.build import WORKLOADS, WorkloadSpec, at_rate, build_workload
from bench.workloads.lengths import RequestLength
from bench.workloads.request import ModelLimits, PlannedRequest, Span
from bench.workloads.tokens import all_prompts, ordinary_tokens, prompt_tokens
from bench.workloads.traces import TraceRow, read_azure, read_mooncake
from tandem.errors import ConfigError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,8000,55
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 900, "output_length": 49, "hash_ids": [0, 7]}
{"timestamp": 3000, "input_length": 520, "output_length": 7, "hash_ids": [0, 1]}
"""
LIMITS = ModelLimits(vocab_size=1000, max_context_tokens=2048)
SPEC = WorkloadSpec("sharegpt", 60, 2.0, parse_arrival("poisson"), LIMITS)
WITHOUT_DATA = sorted(set(WORKLOADS) - {"azure", "mooncake", "fixed"})


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return path


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE)
    return path


def test_azure_rows(azure):
    first, second, third = read_azure(azure, 0, 3)
    assert first == TraceRow(0.0, RequestLength(374, 44))
    assert second.at_s == pytest.approx(4.314579, abs=1e-5)
    assert third == TraceRow(60.0, RequestLength(8000, 55))


def test_mooncake_rows(mooncake):
    assert read_mooncake(mooncake, 0, 2) == (
        TraceRow(0.0, RequestLength(1100, 50), (0, 1, 2)),
        TraceRow(1.5, RequestLength(900, 49), (0, 7)),
    )


@pytest.mark.parametrize(("read", "hint"), [(read_azure, "CSV of the Azure"), (read_mooncake, "JSONL of a Mooncake")])
def test_missing_data_says_what_to_pass(read, hint, tmp_path):
    with pytest.raises(ConfigError, match=f"--data PATH, the {hint}"):
        read(None, 0, 1)
    with pytest.raises(ConfigError, match=f"nothing.csv: No such file.*--data PATH, the {hint}"):
        read(tmp_path / "nothing.csv", 0, 1)


def test_a_trace_of_another_format_is_refused(azure, mooncake):
    with pytest.raises(ConfigError, match="is not the CSV"):
        read_azure(mooncake, 0, 1)
    with pytest.raises(ConfigError, match="is not the JSONL"):
        read_mooncake(azure, 0, 1)


def test_a_trace_that_is_too_short_is_refused(azure):
    with pytest.raises(ConfigError, match="has 2 requests from number 1 on, 3 are asked for"):
        read_azure(azure, 1, 3)


def test_a_part_of_a_trace_begins_at_zero_when_it_is_sent(azure, monkeypatch):
    monkeypatch.setattr("bench.workloads.build.TRACE_STRIDE", 1)
    own_gaps = parse_arrival("trace")
    spec = replace(SPEC, name="azure", num_requests=2, rate_per_s=0.5, arrival=own_gaps, data=azure, length_scale=0.1)
    first, second = (build_workload(replace(spec, seed=seed)).requests for seed in (0, 1))
    assert first[1].spans[0].num_tokens == second[0].spans[0].num_tokens  # the same request of the trace
    assert [request.at_s for request in second] == pytest.approx([0.0, 2.0])


def test_a_trace_keeps_its_gaps_at_the_rate_asked_for(azure):
    spec = replace(SPEC, name="azure", num_requests=3, rate_per_s=0.5, arrival=parse_arrival("trace"), data=azure)
    workload = build_workload(spec)
    times_s = [request.at_s for request in workload.requests]
    assert times_s[2] == pytest.approx(4.0)
    assert times_s[1] / times_s[2] == pytest.approx(4.314579 / 60, rel=1e-4)


def test_traces_are_scaled_to_the_context(azure):
    spec = replace(SPEC, name="azure", num_requests=3, data=azure)
    requests = build_workload(spec).requests
    assert max(request.num_new_tokens for request in requests) <= 2048
    assert requests[0].num_new_tokens < 374  # the third is four times as long as the context
    assert build_workload(replace(spec, length_scale=1.0)).requests[0].num_new_tokens == 374


def test_mooncake_prompts_share_their_blocks_and_no_others(mooncake):
    spec = replace(SPEC, name="mooncake", num_requests=3, data=mooncake, length_scale=1.0)
    one, two, three = all_prompts(build_workload(spec).requests, ordinary_tokens(LIMITS), "").values()
    assert [len(one), len(two), len(three)] == [1100, 900, 520]
    assert one[:512] == two[:512] == three[:512]
    assert one[512:520] == three[512:]
    assert one[512:900] != two[512:]


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_the_same_specification_is_the_same_workload(name):
    spec = replace(SPEC, name=name)
    assert build_workload(spec) == build_workload(spec)
    assert build_workload(spec) != build_workload(replace(spec, seed=1))


@pytest.mark.parametrize("context", [64, 2048, 8192])
@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_every_conversation_fits_the_context(name, context):
    spec = replace(SPEC, name=name, limits=ModelLimits(1000, context))
    requests = build_workload(spec).requests
    assert len(requests) == spec.num_requests
    assert [request.number for request in requests] == list(range(spec.num_requests))
    before: dict[int, int] = {}
    for request in requests:
        num_before = before.get(request.follows, 0) if request.follows is not None else 0
        before[request.number] = num_before + request.num_new_tokens + request.max_tokens
        assert before[request.number] <= context


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_the_mean_rate_counts_every_request(name):
    spec = replace(SPEC, name=name, num_requests=2000, rate_per_s=5.0)
    roots = [request for request in build_workload(spec).requests if request.follows is None]
    seconds = max(request.at_s for request in roots)
    assert spec.num_requests / seconds == pytest.approx(5.0, rel=0.15)


def test_another_rate_sends_the_same_requests():
    slow, fast = build_workload(SPEC).requests, build_workload(at_rate(SPEC, 20.0)).requests
    assert [request.spans for request in slow] == [request.spans for request in fast]
    assert slow[-1].at_s == pytest.approx(10 * fast[-1].at_s)


def test_chats_are_turns_that_follow_each_other_behind_one_system_prompt():
    requests = build_workload(replace(SPEC, name="chat")).requests
    assert [request.follows for request in requests[:5]] == [None, 0, 1, 2, None]
    assert requests[0].spans[0] == requests[4].spans[0]
    assert len(requests[1].spans) == 1


def test_rag_prompts_share_documents_in_any_place():
    requests = build_workload(replace(SPEC, name="rag")).requests
    places: dict[str, set[int]] = {}
    for request in requests:
        for place, span in enumerate(request.spans[1:-1]):
            places.setdefault(span.content, set()).add(place)
    assert max(len(found) for found in places.values()) > 1
    assert len({request.spans[0] for request in requests}) == 1
    assert all(len(set(request.spans)) == len(request.spans) for request in requests)


def test_a_closed_loop_has_its_users():
    assert build_workload(replace(SPEC, arrival=parse_arrival("closed:3"))).num_users == 3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "nothing"}, "workload"),
        ({"name": "sharegpt:5"}, "workload"),
        ({"name": "fixed"}, "workload"),
        ({"name": "fixed:1"}, "workload"),
        ({"name": "fixed:0,5"}, "workload"),
        ({"name": "fixed:2000,100"}, "workload"),
        ({"num_requests": 0}, "num_requests"),
        ({"rate_per_s": 0.0}, "rate"),
        ({"arrival": parse_arrival("trace")}, "arrival"),
        ({"name": "azure"}, "data"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, key):
    with pytest.raises(ConfigError) as caught:
        build_workload(replace(SPEC, **changes))
    assert caught.value.key == key


def test_equal_spans_are_equal_tokens_and_longer_ones_begin_alike():
    tokens = ordinary_tokens(LIMITS)
    long, short = (prompt_tokens([Span("a", count)], tokens, "s") for count in (50, 20))
    assert long[:20] == short
    assert prompt_tokens([Span("b", 20)], tokens, "s") != short
    assert prompt_tokens([Span("a", 20)], tokens, "t") != short


def test_prompts_hold_no_special_tokens():
    tokens = ordinary_tokens(LIMITS)
    request = PlannedRequest(0, 0.0, (Span("a", 5000),), 1)
    drawn = all_prompts([request], tokens, "")[0]
    assert min(drawn) >= 50
    assert max(drawn) < 950
    assert len(set(drawn)) > 800
