import json
from unittest.mock import Mock

from click.testing import CliRunner

from tandem.cli.logs import Follower, recent
from tandem.cli.main import main


def line(event: str, second: int) -> str:
    return json.dumps({"timestamp": f"2030-01-02T03:04:{second:02}Z", "level": "info", "event": event}) + "\n"


def test_the_newest_events_of_all_services_in_their_order(tmp_path):
    (tmp_path / "a").write_text(line("a1", 1) + line("a2", 4) + "trace of a2\n")
    (tmp_path / "b").write_text(line("b1", 2) + line("b2", 5))
    followers = [Follower(name, tmp_path / name) for name in "ab"]
    shown = [(service, event.name) for service, event in recent(followers, 4)]
    assert shown == [("b", "b1"), ("a", "a2"), ("a", "trace of a2"), ("b", "b2")]
    assert recent(followers, 0) == []


def test_who_follows_ends_it_in_good_order(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "memd.log").write_text(line("m1", 1))
    monkeypatch.setattr("tandem.cli.logs.time", Mock(sleep=Mock(side_effect=KeyboardInterrupt)))
    followed = CliRunner().invoke(main, ["logs", "-f", "--run-dir", str(tmp_path)])
    assert (followed.exit_code, followed.stderr) == (0, "")
    assert followed.stdout.endswith("memd       m1\n")


def test_only_what_is_added_is_followed_and_only_whole_lines(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("before\n")
    follower = Follower("x", log)
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert list(follower.new_lines()) == ["one"]
        file.write("o\n")
        file.flush()
        assert list(follower.new_lines()) == ["two"]
    assert list(follower.new_lines()) == []


def test_a_log_that_comes_later_or_is_rotated_or_emptied_is_read_on(tmp_path):
    log = tmp_path / "x.log"
    follower = Follower("x", log)
    assert list(follower.new_lines()) == []
    log.write_text("first\n")
    assert list(follower.new_lines()) == ["first"]
    log.rename(tmp_path / "x.log.1")
    log.write_text("second, longer than the first\n")
    assert list(follower.new_lines()) == ["second, longer than the first"]
    log.write_text("third\n")
    assert list(follower.new_lines()) == ["third"]
