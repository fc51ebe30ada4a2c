import math

import pytest

from tandem.device.cpu.affinity import CpuAffinityBackend, cgroup_quota_cores
from tandem.types import Phase, Split


@pytest.fixture
def cgroup(tmp_path):
    def make(membership: str, **quotas: str) -> float:
        root = tmp_path / "cgroup"
        for name, quota in {"": "max 100000", **quotas}.items():
            folder = root / name.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.max").write_text(quota + "\n")
        (tmp_path / "self").write_text(membership)
        return cgroup_quota_cores(root, tmp_path / "self")

    return make


def test_no_quota(cgroup):
    assert cgroup("0::/\n") == math.inf


def test_a_quota_of_the_group(cgroup):
    assert cgroup("0::/pod\n", pod="150000 100000") == 1.5


def test_the_tightest_quota_above_the_group(cgroup):
    assert cgroup("1:cpu:/x\n0::/pod/box\n", pod="50000 100000", pod__box="200000 100000") == 0.5


@pytest.mark.parametrize("membership", ["", "1:cpu:/x\n", "0::/../outside\n"])
def test_groups_that_say_nothing(cgroup, membership):
    assert cgroup(membership) == math.inf


def test_a_machine_without_control_groups(tmp_path):
    assert cgroup_quota_cores(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota_cores", "threads"), [(0.5, 1), (1.5, 2), (math.inf, 3)])
def test_a_quota_bounds_the_threads(monkeypatch, quota_cores, threads):
    bound, set_to = [], []
    monkeypatch.setattr("os.sched_setaffinity", lambda thread_id, cores: bound.append(cores))
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    backend = CpuAffinityBackend([0, 1, 2, 3], quota_cores=quota_cores)
    backend.apply(Phase.DECODE, Split(25, 75))
    assert set_to == [threads]
    assert set(bound) == {(1, 2, 3)}
