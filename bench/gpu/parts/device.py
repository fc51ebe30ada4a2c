"""The card and its driver."""

import platform
import shutil
import sys
from importlib.metadata import version

import torch

from bench.gpu.bench import Bench
from tandem.device.cuda.driver import check, open_driver
from tandem.device.cuda.gpu import read_gpu
from tandem.device.cuda.mps import CONTROL_PROGRAM
from tandem.device.cuda.vmm_export import exportable_properties, granularity_bytes
from tandem.device.memory_backends import why_no_vmm


def device(bench: Bench) -> None:
    """What the driver says of it, where there is one."""
    bench.record("python", sys.version.split()[0])
    bench.record("torch", torch.__version__)
    if not bench.is_dry:
        driver_facts(bench)


def driver_facts(bench: Bench) -> None:
    """Versions, SMs, granularity, and into which groups the driver cuts the SMs."""
    bench.record("kernel", platform.release())
    bench.record("mps_control", shutil.which(CONTROL_PROGRAM) or "not found")
    for package in ("triton", "cuda-bindings"):
        bench.record(package, version(package))
    driver = open_driver()
    gpu = read_gpu(driver)
    bench.record("name", gpu.name)
    bench.record("cuda", list(gpu.cuda_version))
    bench.record("num_sms", gpu.num_sms)
    bench.record("memory_bytes", gpu.memory_bytes)
    prop = exportable_properties(driver, 0)
    bench.record("granularity_bytes", granularity_bytes(driver, prop))
    bench.record("why_no_vmm", why_no_vmm(driver))
    device = check(driver, driver.cuDeviceGet(0), "cuDeviceGet")
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    everything = check(driver, driver.cuDeviceGetDevResource(device, kind), "cuDeviceGetDevResource")
    for wanted in (1, 2, 4, 8, 16, 32):
        split = driver.cuDevSmResourceSplitByCount(gpu.num_sms // wanted, everything, 0, wanted)
        parts, num_groups, rest = check(driver, split, "cuDevSmResourceSplitByCount")
        sizes = sorted({part.sm.smCount for part in parts[:num_groups]})
        bench.record(f"groups_of_at_least_{wanted}_sms", [num_groups, sizes, rest.sm.smCount])
