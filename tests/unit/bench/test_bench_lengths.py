"""Lengths of prompts and answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.lengths import LONGBENCH, SHAREGPT, LogNormal, RequestLength, fitting_scale, fixed, scaled
from tandem.errors import ConfigError

lengths = st.builds(RequestLength, st.integers(1, 200_000), st.integers(1, 5_000))


@pytest.mark.parametrize(("mix", "prompt", "output"), [(SHAREGPT, 251, 200), (LONGBENCH, 1738, 91)])
def test_mixes_have_their_means(mix, prompt, output):
    drawn = mix.sample(np.random.default_rng(3), 40_000)
    assert np.mean([length.num_prompt_tokens for length in drawn]) == pytest.approx(prompt, rel=0.04)
    assert np.mean([length.num_output_tokens for length in drawn]) == pytest.approx(output, rel=0.04)


def test_a_mix_is_spread_out():
    drawn = SHAREGPT.prompts.sample(np.random.default_rng(3), 20_000)
    assert np.median(drawn) < 0.7 * np.mean(drawn)


def test_fixed_lengths_do_not_vary():
    assert set(fixed(512, 64).sample(np.random.default_rng(0), 50)) == {RequestLength(512, 64)}


def test_no_length_is_below_one():
    assert min(LogNormal(1.2, 2.0).sample(np.random.default_rng(0), 5_000)) == 1


@given(length=lengths, scale=st.floats(1e-4, 4.0), context=st.integers(2, 10_000))
def test_what_is_scaled_fits_the_context(length, scale, context):
    cut = scaled(length, scale, context)
    assert cut.num_prompt_tokens >= 1
    assert 1 <= cut.num_output_tokens <= context // 2
    assert cut.num_prompt_tokens + cut.num_output_tokens <= context


def test_what_fits_is_left_as_it_is():
    assert scaled(RequestLength(100, 20), 1.0, 1_000) == RequestLength(100, 20)


def test_a_context_without_room_is_refused():
    with pytest.raises(ConfigError, match="max_context_tokens"):
        scaled(RequestLength(1, 1), 1.0, 1)


@given(st.lists(lengths, min_size=1, max_size=200), st.integers(64, 8192))
def test_the_fitting_scale_lets_nearly_all_requests_fit(drawn, context):
    scale = fitting_scale(drawn, context)
    assert 0 < scale <= 1
    too_long = [each for each in drawn if (each.num_prompt_tokens + each.num_output_tokens) * scale > context * 1.001]
    assert len(too_long) <= 0.01 * len(drawn) + 1


def test_short_requests_are_not_stretched():
    assert fitting_scale([RequestLength(10, 10)] * 5, 8192) == 1.0
