"""The file of tenants: what it may hold, and what is said of what it may not."""

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tandem.cli.main import main
from tandem.config.tenants import Quotas, key_digest, key_line, new_key, read_tenants
from tandem.errors import ConfigError

LINE = key_line("secret")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(text)
    return path


def test_tenants_their_domains_and_quotas(tmp_path):
    path = written(
        tmp_path,
        f"""
        [acme]
        keys = ["{LINE}", "{key_line("other")}"]
        domain = "org:works"
        max_running = 2
        min_recompute_ratio = 0.25
        [alone]
        keys = ["{key_line("third")}"]
        [shy]
        keys = ["{key_line("fourth")}"]
        kv_reuse = "none"
        [anew]
        keys = ["{key_line("fifth")}"]
        cache_generation = 2
        """,
    )
    tenants = read_tenants(path)
    assert {name: tenant.domain for name, tenant in tenants.by_name.items()} == {
        "acme": "org:works",
        "alone": "private:alone",
        "shy": None,
        "anew": "private:anew#2",
    }
    assert tenants.by_name["acme"].quotas == Quotas(max_running=2, min_recompute_ratio=0.25)
    assert tenants.by_hash[hashlib.sha256(b"secret").digest()].name == "acme"
    assert len(tenants.by_hash) == 5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[a]", "a.keys"),
        ("[a]\nkeys = []", "a.keys"),
        ("[a]\nkeys = ['tandem-a-key-itself']", "a.keys.0"),
        (f"[a]\nkeys = ['{LINE}']\nmax_waiting = 0", "a.max_waiting"),
        (f"[a]\nkeys = ['{LINE}']\nquota = 1", "a.quota"),
        (f"[a]\nkeys = ['{LINE}']\nmin_recompute_ratio = 1.5", "a.min_recompute_ratio"),
        (f"[a]\nkeys = ['{LINE}']\nmin_recompute_ratio = nan", "a.min_recompute_ratio"),
        (f"[a]\nkeys = ['{LINE}']\ndomain = 'org:'", "a.domain"),
        (f"['a b']\nkeys = ['{LINE}']", "a b"),
        ("a = 1", "a"),
        (f"[a]\nkeys = ['{LINE}']\n[b]\nkeys = ['{LINE}']", "b.keys"),
    ],
)
def test_what_is_wrong_is_named_without_its_value(tmp_path, text, named):
    with pytest.raises(ConfigError, match=r"gateway\.api_keys: ") as caught:
        read_tenants(written(tmp_path, text))
    assert f"tenants.toml: {named}" in str(caught.value)
    assert "a-key-itself" not in str(caught.value)


def test_what_is_no_toml_is_named_as_such(tmp_path):
    with pytest.raises(ConfigError, match=r"gateway\.api_keys: .*tenants\.toml is not TOML: "):
        read_tenants(written(tmp_path, "[a"))


def test_a_file_that_is_away(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_tenants(tmp_path / "none.toml")


def test_a_drawn_key_and_its_table_fit_together(tmp_path):
    key, _, table = CliRunner().invoke(main, ["keys", "new", "acme"]).output.partition("\n")
    assert read_tenants(written(tmp_path, table)).by_hash[key_digest(key)].name == "acme"
    assert new_key() != new_key()
    assert CliRunner().invoke(main, ["keys", "new", "a b"]).exit_code != 0
