"""What the documents say can be done: files that are there, commands that parse, a request that is one."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from google.protobuf import json_format

from tandem.cli.main import main
from tandem.rpc.names import SERVICE_NAMES
from tandem.rpc.stubs.gateway.v1 import gateway_pb2

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("bench", "deploy", "docs", "kernels", "protos", "services", "tandem", "tests")
README = DOCUMENTS[0].read_text()
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(text: str) -> list[str]:
    """What stands between fences."""
    return re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@each_document
def test_files_that_are_named_are_there(document):
    named = re.findall(r"`([\w./-]+\.(?:py|proto|md|yml|sh|toml))`", document.read_text())
    files = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
    own = {"docker-compose.override.yml"}  # the reader's
    known = files | own | {path.name for path in ROOT.iterdir()}
    assert [name for name in named if not ((ROOT / name).exists() if "/" in name else name in known)] == []


def test_each_guarantee_names_the_test_that_holds_it():
    rows = [line for line in GUARANTEES.splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) > 50
    named = re.compile(r".*\| [^|]*`(tests/[\w/]+\.py|python -m tests\.chaos)`[^|]*\|$")
    assert [row for row in rows if not named.match(row)] == []


@each_document
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert [target for target in targets if "://" not in target and not (document.parent / target).exists()] == []


@each_document
def test_commands_parse(document):
    lines = [line for block in blocks(document.read_text()) for line in block.splitlines()]
    for line in (line.partition("#")[0] for line in lines if line.startswith("tandem ")):
        _, name, *arguments = shlex.split(line)
        main.commands[name].make_context(name, arguments)


def test_the_request_of_the_readme_is_one():
    body, method = re.search(r"-d '(.*?)' \\\n\s+\S+ (\S+)", README).groups()
    service, _, name = method.partition("/")
    assert service == SERVICE_NAMES["gateway"]
    asked = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].methods_by_name[name].input_type.name
    request = json_format.ParseDict(json.loads(body), getattr(gateway_pb2, asked)())
    assert request.text
    assert request.sampling.max_tokens


def test_the_python_of_the_readme_compiles():
    (block,) = (block for block in blocks(README) if "tandem.client" in block)
    ast.parse(block)
