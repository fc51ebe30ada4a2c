"""docs/operations.md has every key, and every command."""

from pathlib import Path

import pytest

from tandem.cli.main import main
from tandem.config.settings import SERVICES, CommonConfig

TEXT = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
COMMON = set(CommonConfig.model_fields)
KEYS = [("common", key) for key in sorted(COMMON)] + [
    (service, key) for service, config in SERVICES.items() for key in config.model_fields if key not in COMMON
]


@pytest.fixture
def table() -> list[tuple[str, str]]:
    configuration = TEXT[TEXT.index("| section | key |") : TEXT.index("In the environment:")]
    lines = [[cell.strip(" `") for cell in line.split("|")] for line in configuration.strip().splitlines()]
    return [(section, cells[2]) for cells in lines[2:] for section in cells[1].split(", ")]


def test_the_table_has_every_key_once_and_no_other(table):
    assert sorted(table) == sorted(KEYS)


def test_every_command_is_there():
    assert all(f"`tandem {name}" in TEXT for name in main.commands)
