"""Every error that Tandem raises on purpose.

::

    TandemError
    ├── ConfigError              a key of the configuration; names it
    ├── InvalidRequestError      a field of a request; names it
    ├── DuplicateRequestError    the request_id is running
    ├── NotFoundError            no such request, lease or holder
    ├── UnauthenticatedError     no API key, or one that nobody has
    ├── QueueFullError           the waiting queue's bound, or a tenant's quota; carries a retry delay
    ├── SlowReaderError          the client leaves too much of its answer unread
    ├── DeadlineError            the client's deadline has passed
    ├── NotReadyError            loading, draining, or a peer is away: a retry may help
    ├── SequenceFailedError      a phase failed on the sequence, each time it was tried
    ├── ModelError               the model's files
    │   ├── ModelNotFoundError
    │   ├── ModelFormatError         truncated, wrong types, not a model
    │   └── UnsupportedModelError    a family or a quantisation that is not built
    ├── StorageError             memd and its ledger
    │   ├── FingerprintMismatchError both values in the message
    │   ├── StorageLostError         memd has other storage now: what was mapped and leased is nobody's
    │   ├── StaleBlockError          a generation that is not the block's
    │   ├── PinQuotaError            more blocks than may be kept from eviction
    │   ├── LeaseError               a transition that the lease's or block's state does not allow
    │   └── LedgerCorruptError       the ledger contradicts itself; names who owns what
    └── DeviceError              a backend could not do what it must
        └── DeviceFaultError         this process can use the device no more

`tandem.rpc.status` maps each to one gRPC status code; nothing else chooses codes.
"""


class TandemError(Exception):
    """The root; its text is fit for a client to read."""


class ConfigError(TandemError):
    """A bad or unknown configuration key. `key` is its full name (``gateway.port``)."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key


class InvalidRequestError(TandemError):
    """A request field that cannot be served. `field` is its path (``sampling.top_p``)."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class DuplicateRequestError(TandemError):
    """The request_id names a request that is running."""


class NotFoundError(TandemError):
    """No such request, lease or holder."""


class UnauthenticatedError(TandemError):
    """The caller shows no API key, or one that no tenant has."""


class QueueFullError(TandemError):
    """The waiting queue is at its bound, or a tenant at its quota."""

    def __init__(self, message: str, retry_delay_s: float) -> None:
        super().__init__(message)
        self.retry_delay_s = retry_delay_s


class SlowReaderError(TandemError):
    """The client left more of its answer unread than the server keeps for it."""


class DeadlineError(TandemError):
    """The client's deadline passed before the answer was complete."""


class NotReadyError(TandemError):
    """Not now: loading, draining, or a peer is away. A retry may help."""


class SequenceFailedError(TandemError):
    """A phase failed on the sequence, each time it was tried."""


class ModelError(TandemError):
    """Something about a model's files."""


class ModelNotFoundError(ModelError):
    """No model at that path."""


class ModelFormatError(ModelError):
    """The files are truncated, of the wrong type, or not a model."""


class UnsupportedModelError(ModelError):
    """A family, a rope scaling or a quantisation that is not built."""


class StorageError(TandemError):
    """Something about memd's segments, blocks or leases."""


class FingerprintMismatchError(StorageError):
    """A phase and the storage do not fit; the message holds both values of each differing field."""


class StorageLostError(StorageError):
    """memd has begun anew, or has given the holder up: what it mapped and leased is not to be used any more."""


class StaleBlockError(StorageError):
    """A block reference whose generation is not the block's own any more."""


class LeaseError(StorageError):
    """A transition that the state of the lease or the block does not allow."""


class PinQuotaError(StorageError):
    """More blocks than may be kept from eviction."""


class LedgerCorruptError(StorageError):
    """The ledger contradicts itself; the message names the blocks and who owns them."""


class DeviceError(TandemError):
    """A memory or partition backend could not do what it must."""


class DeviceFaultError(DeviceError):
    """A fault after which this process can use the device no more; another process may."""
