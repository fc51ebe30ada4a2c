"""A loader that ends as its ``--model`` says: for what memd must survive. Run as memd runs the real one."""

import argparse
import json
import mmap
import os
import signal
import socket
import sys

from services.memd.loader_protocol import FILLED, encode, encode_failure, encode_plan
from tandem.errors import ConfigError, UnsupportedModelError
from tests.support.memd import PLAN


def behave(how: str, channel: socket.socket) -> int:
    match how:
        case "exits":
            return 3
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fails":
            channel.sendall(encode_failure(UnsupportedModelError("family 'bert' is not built")))
            return 1
        case "fails otherwise":
            channel.sendall(encode_failure(ConfigError("model", "odd")))
            return 1
        case "waits":
            channel.recv(1)
            return 0
    channel.sendall(encode_plan(PLAN))
    return fill(how, channel)


def fill(how: str, channel: socket.socket) -> int:
    if how == "exits after its plan":
        return 4
    answer, (fd, *_), _, _ = socket.recv_fds(channel, 4096, 2)
    if how == "is killed while it fills":
        os.kill(os.getpid(), signal.SIGKILL)
    with mmap.mmap(fd, json.loads(answer)["segments"][0]["size_bytes"]) as weights:
        weights[:4] = b"full"
    channel.sendall(encode(FILLED))
    if how == "does not end":
        signal.pause()
    return 5 if how == "exits badly at the end" else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    for flag in ("--model", "--cache-dir", "--dtype", "--quantization", "--memory-kind", "--log-level", "--channel-fd"):
        parser.add_argument(flag, required=True)
    flags = parser.parse_args()
    with socket.socket(fileno=int(flags.channel_fd)) as channel:
        return behave(flags.model, channel)


if __name__ == "__main__":
    sys.exit(main())
