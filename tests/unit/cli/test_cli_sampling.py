import click
import pytest
from click.testing import CliRunner

from tandem.cli.sampling import sampling_options


@pytest.fixture
def parsed():
    def parse(*words: str):
        seen = {}

        @click.command()
        @sampling_options
        def command(**sampling):
            seen.update({name: value for name, value in sampling.items() if value is not None})

        assert CliRunner().invoke(command, words).exit_code == 0
        return seen

    return parse


def test_what_is_not_given_is_left_to_the_server(parsed):
    assert parsed() == {"stop": ()}


def test_zero_is_given(parsed):
    assert parsed("--temperature", "0", "--seed", "0") == {"temperature": 0.0, "seed": 0, "stop": ()}


def test_names_are_the_protos(parsed):
    assert parsed("--top-p", "0.5", "--stop", "a", "--stop", "b", "--ignore-eos", "--max-tokens", "3") == {
        "top_p": 0.5, "stop": ("a", "b"), "ignore_eos": True, "max_tokens": 3,
    }  # fmt: skip
