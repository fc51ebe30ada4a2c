from types import SimpleNamespace

import pytest

from tandem.cli.deployment import Overrides, resolve
from tandem.cli.first_answer import how_to_talk, stream
from tandem.clock import ManualClock


def pieces(clock, *timed):
    for seconds, num_tokens in timed:
        clock.advance(seconds)
        yield SimpleNamespace(text_delta="x" * num_tokens, token_ids=tuple(range(num_tokens)))


def test_the_rate_counts_what_follows_the_first_piece():
    clock = ManualClock()
    written = []
    timing = stream(pieces(clock, (0.5, 2), (1.0, 4), (1.0, 6)), written.append, clock.now)
    assert timing.ttft_ms == pytest.approx(500)
    assert timing.num_tokens == 12
    assert timing.tokens_per_s == pytest.approx(5.0)
    assert "".join(written) == "x" * 12


@pytest.mark.parametrize("timed", [[], [(0.25, 1)]])
def test_an_answer_of_one_piece_or_none_has_no_rate(timed):
    clock = ManualClock()
    assert stream(pieces(clock, *timed), lambda _: None, clock.now).tokens_per_s == 0.0


def test_the_address_is_the_gateways_own(tmp_path):
    fixed = resolve(Overrides(run_dir=tmp_path, port=1234), {"TANDEM_GATEWAY_HOST": "0.0.0.0"})
    assert "0.0.0.0:1234 tandem.gateway.v1.GatewayService/Generate" in how_to_talk(fixed)
    free = resolve(Overrides(run_dir=tmp_path, port=0), {})
    assert f'Client("unix:{tmp_path}/gateway.sock")' in how_to_talk(free)
