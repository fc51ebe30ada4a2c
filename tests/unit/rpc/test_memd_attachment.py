"""The attachment's end, where it is cut off itself."""

import asyncio
from typing import Any

import pytest

from tandem.kv.layout import KvLayout
from tandem.rpc.memd_client import Attachment
from tandem.rpc.stubs.memd.v1 import memd_pb2 as pb
from tests.support.memd import PLAN


class SilentCall:
    """A stream whose end is a while in coming."""

    async def read(self) -> None:
        await asyncio.get_running_loop().create_future()

    def cancel(self) -> None: ...


async def test_a_detaching_that_is_cancelled_is_cancelled():
    attached = pb.Attached(
        holder_id=1,
        model_config_json=PLAN.model_config_json,
        weight_manifest_json=PLAN.manifest_json,
        kv_layout_json=KvLayout(1, 8, 4, 1, 4, "float32").to_json(),
    )
    call: Any = SilentCall()
    attachment = Attachment(attached, {}, call, stub=None)
    attachment.ended.set()
    detaching = asyncio.create_task(attachment.detach())
    await asyncio.sleep(0)
    detaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await detaching
