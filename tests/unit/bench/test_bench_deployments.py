"""Deployments by name."""

from pathlib import Path

import pytest

from bench.deployment.local import COLOCATED, SEMI_PD
from bench.deployment.open import (
    DeploymentOptions,
    local_services,
    open_all,
    open_deployment,
    parse_deployment,
    parse_deployments,
)
from bench.load.endpoint import Protocols
from tandem.config.settings import SERVICES
from tandem.errors import ConfigError

OPTIONS = DeploymentOptions("default", {"controller": {"window-requests": 5}})


@pytest.mark.parametrize(
    "text",
    [
        "semi-pd",
        "semi-pd:gateway.queue-policy=fcfs",
        "static:60,40",
        "colocated",
        "at:unix:/x/y.sock",
        "openai:http://h:1",
        "vllm",
        "transformers",
    ],
)
def test_a_deployment_is_called_what_the_user_called_it(text):
    assert parse_deployment(text).name == text


@pytest.mark.parametrize(
    "text",
    ["", "fast", "semi-pd:1", "static", "at", "openai:", "colocated:2", "static:70", "static:70,30,1", "static:a,b"],
)
def test_what_is_no_deployment_is_refused(text):
    with pytest.raises(ConfigError, match="deployment"):
        parse_deployment(text)


def test_a_static_split_is_the_controllers():
    services = local_services(parse_deployment("static:70,30"), OPTIONS, Path("/x"))
    assert services.settings["controller"] == {
        "window-requests": 5,
        "planner": "static",
        "prefill-percent": 70,
        "decode-percent": 30,
    }
    assert services.services == SEMI_PD


def test_a_deployment_may_have_settings_of_its_own():
    spec = parse_deployment("colocated:gateway.queue_policy=kvshare,gateway.max-wait-s=5,controller.window-requests=6")
    services = local_services(spec, OPTIONS, Path("/x"))
    assert services.settings == {
        "gateway": {"queue-policy": "kvshare", "max-wait-s": "5"},
        "controller": {"window-requests": "6"},
    }
    assert services.services == COLOCATED


def test_a_peer_with_a_model_of_its_own_is_called_by_the_files_name():
    assert parse_deployment("llama-server:/models/q8_0.gguf").name == "llama-server:q8_0.gguf"


def test_deployments_side_by_side_have_names_of_their_own():
    names = [spec.name for spec in parse_deployments(["semi-pd", "static:60,40", "llama-server:a.gguf"])]
    assert names == ["semi-pd", "static:60,40", "llama-server:a.gguf"]
    with pytest.raises(ConfigError, match="one name"):
        parse_deployments(["llama-server:/a/m.gguf", "llama-server:/b/m.gguf"])


def test_all_deployments_are_open_at_once():
    specs = parse_deployments(["at:unix:/x/one.sock", "at:unix:/x/two.sock"])
    with open_all(specs, OPTIONS) as targets:
        assert [target.name for target in targets] == [spec.name for spec in specs]


def test_colocated_has_one_phase_process():
    services = local_services(parse_deployment("colocated"), OPTIONS, Path("/x"))
    assert services.services == COLOCATED
    assert services.settings == OPTIONS.settings


def test_only_services_that_there_are_are_started():
    assert set(SEMI_PD) | set(COLOCATED) <= set(SERVICES)


def test_a_deployment_that_runs_already_is_only_named():
    with open_deployment(parse_deployment("at:unix:/x/gateway.sock"), OPTIONS) as target:
        assert (target.endpoint.protocol, target.endpoint.address) == (Protocols.TANDEM, "unix:/x/gateway.sock")
        assert not target.pids
