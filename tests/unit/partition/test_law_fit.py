"""Laws from a file of measured steps."""

import json
from dataclasses import replace

import pytest

from tandem.config.step_times import MeasuredStep, read_step_times
from tandem.errors import ConfigError
from tandem.partition.law_fit import fit_laws
from tandem.partition.step_times import StepLaw, StepLaws
from tandem.types import Phase

TRUE = StepLaws(
    prefill=StepLaw(base_ms=5.0, row_ms=0.3, key_ms=0.0, pair_ms=2e-4, parallel=0.9),
    decode=StepLaw(base_ms=8.0, row_ms=0.2, key_ms=1e-3, pair_ms=0.0, parallel=0.4),
)
KEY = "controller.step_times"


def step(phase, threads, sequences, new, context) -> MeasuredStep:
    law = TRUE.prefill if phase is Phase.PREFILL else TRUE.decode
    ms = law.ms(50.0 * threads, sequences * new, sequences * context, sequences)
    return MeasuredStep(phase, threads, sequences, new, context, ms)


STEPS = [
    step(phase, threads, sequences, new, context)
    for threads in (1, 2)
    for phase, sequences, new, context in (
        *((Phase.DECODE, batch, 1, context) for batch in (1, 8, 32) for context in (128, 1024)),
        *((Phase.PREFILL, 1, chunk, chunk + before) for chunk in (64, 512) for before in (0, 1024)),
    )
]


def document(steps=STEPS, **changed) -> dict:
    entries = [
        {
            "shape": {
                "phase": each.phase,
                "num_threads": each.num_threads,
                "num_sequences": each.num_sequences,
                "num_new_tokens": each.num_new_tokens,
                "num_context_tokens": each.num_context_tokens,
            },
            "median_ms": each.ms,
            "floor_ms": 1.0,
        }
        for each in steps
    ]
    return {"schema": "tandem.bench.micro/1", "steps": entries, "model": {"name": "m"}, **changed}


def test_the_fit_finds_the_law_that_made_the_steps(tmp_path):
    path = tmp_path / "micro.json"
    path.write_text(json.dumps(document()))
    found = fit_laws(read_step_times(path, KEY), TRUE, KEY)
    for made, true in ((found.prefill, TRUE.prefill), (found.decode, TRUE.decode)):
        assert made.parallel == pytest.approx(true.parallel, rel=1e-6)
        for percent, rows, keys, sequences in ((50, 300, 300, 1), (20, 16, 16 * 500, 16), (100, 1, 4000, 1)):
            assert made.ms(percent, rows, keys, sequences) == pytest.approx(true.ms(percent, rows, keys, sequences))


def test_with_one_number_of_threads_what_a_share_does_stays_as_known():
    known = replace(TRUE, decode=replace(TRUE.decode, parallel=0.123))
    found = fit_laws([each for each in STEPS if each.num_threads == 2], known, KEY)
    assert found.decode.parallel == 0.123


def test_no_term_is_below_zero_whatever_was_measured():
    shrinking = [replace(each, ms=1000.0 / each.num_context_tokens) for each in STEPS]
    found = fit_laws(shrinking, TRUE, KEY)
    assert min(found.decode.base_ms, found.decode.row_ms, found.decode.key_ms) >= 0


def test_too_few_steps_are_refused_by_the_key():
    with pytest.raises(ConfigError, match=r"controller\.step_times: has 0 steps of decode"):
        fit_laws([each for each in STEPS if each.phase is Phase.PREFILL], TRUE, KEY)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[]", "no tandem.bench.micro/1"),
        (json.dumps(document(schema="tandem.bench.run/1")), "no tandem.bench.micro/1"),
        (json.dumps(document(steps=[replace(STEPS[0], ms=-1.0)])), "steps.0.median_ms"),
        (json.dumps(document(steps=[replace(STEPS[0], num_threads=0)])), "steps.0.shape.num_threads"),
        (json.dumps({"schema": "tandem.bench.micro/1"}), "steps"),
    ],
)
def test_a_file_that_is_none_is_refused_with_key_file_and_remedy(tmp_path, text, complaint):
    path = tmp_path / "micro.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="tandem bench micro") as raised:
        read_step_times(path, KEY)
    assert str(raised.value).startswith(f"{KEY}: {path}")
    assert complaint in str(raised.value)
