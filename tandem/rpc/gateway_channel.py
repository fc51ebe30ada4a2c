"""How a client's connection to a gateway behaves; the same for threads and for asyncio."""

import json

from tandem.rpc.names import SERVICE_NAMES
from tandem.rpc.reconnect import CHANNEL_OPTIONS as RECONNECTING

# Calls that generate are taken up again by `tandem.rpc.resuming`, which knows what came of them.
_QUERIES = ("Tokenize", "GetModelInfo", "Abort", "GetStatus")
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE_NAMES["gateway"], "method": method} for method in _QUERIES],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
CHANNEL_OPTIONS = (
    *RECONNECTING,
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
