"""`tandem cache`, over a running system."""

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from tandem.cli.main import main
from tests.support.deployment import Deployment, deployment

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def pinning(tiny_model_dir) -> Iterator[Deployment]:
    memd = {"kv-bytes": 16 << 20, "dtype": "float32", "pin-fraction": 0.01}
    with deployment(str(tiny_model_dir("llama")), {"memd": memd}) as system:
        yield system


@pytest.fixture
def run(pinning: Deployment) -> Run:
    def command(*words: object) -> Result:
        return CliRunner().invoke(main, ["cache", *map(str, words), "--run-dir", str(pinning.run_dir)])

    assert command("rm", "--all").exit_code == 0
    return command


def rows(shown: Result) -> list[list[str]]:
    """The cells of each row under the header."""
    assert shown.exit_code == 0, shown.output
    return [line.split() for line in shown.output.splitlines()[1:] if line.strip()]


def test_a_registered_document_is_there_for_the_next_prompt(run: Run, tmp_path):
    document = tmp_path / "rules.txt"
    document.write_text("the quick brown fox jumps over the lazy dog " * 12)
    first = run("register", document, "--salt", "us")
    assert first.exit_code == 0, first.output
    assert "tokens, 0 were there" in first.output
    num_tokens = int(first.output.split(": ")[1].split()[0])
    again = run("register", document, "--salt", "us")
    assert f"{num_tokens} tokens, {min(num_tokens // 16 * 16, num_tokens - 1)} were there" in again.output
    elsewhere = run("register", document)
    assert "tokens, 0 were there" in elsewhere.output


def test_what_is_kept_is_listed_counted_and_removed(run: Run, tmp_path):
    document = tmp_path / "rules.txt"
    document.write_text("abcdefgh " * 40)
    assert run("register", document).exit_code == 0
    ((namespace, _, tokens, blocks, hits, *_, kept), caption) = rows(run("ls"))
    assert (tokens, hits, kept) == (f"0-{int(blocks) * 16}", "0", "cached")
    assert caption[:2] == ["1", "prefixes"]
    counted = {line[0]: line[1:] for line in rows(run("stats"))}
    assert counted["cached"][0] == blocks
    assert run("rm", namespace[:6]).output == f"{namespace}: {blocks} blocks are free\n"
    assert "0 prefixes" in run("ls").output
    assert run("register", document, "--salt", "us").exit_code == 0
    assert run("rm", "--salt", "us").output.endswith(f"{blocks} blocks are free\n")


def test_pins_are_bounded(run: Run, tmp_path):
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_text("abcd " * 10)
    large.write_text("efgh " * 100)
    pinned = run("register", small, "--pin")
    assert pinned.exit_code == 0, pinned.output
    assert rows(run("ls"))[0][-1] == "pinned"
    refused = run("register", large, "--pin")
    assert refused.exit_code == 1
    assert "need a larger memd.pin_fraction" in refused.output
    assert run("rm", "--all").exit_code == 0
    assert {line[0]: line[1] for line in rows(run("stats"))}["pinned"] == "0"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"ab\xff", "is no UTF-8 text: byte 2"),
        (b"word " * 20000, "and the context holds"),
    ],
)
def test_a_file_that_cannot_be_registered_is_named(run: Run, tmp_path, content: bytes | None, problem: str):
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    failed = run("register", path)
    assert failed.exit_code == 1
    assert failed.output.startswith(f"Error: {path}: ")
    assert problem in failed.output


def test_what_is_not_there_cannot_be_removed(run: Run):
    assert "nothing is cached in a namespace abc" in run("rm", "abc").output
    assert run("rm").exit_code == 2
