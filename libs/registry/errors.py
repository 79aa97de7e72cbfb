"""What can go wrong between us and etcd.

RegistryError
├── RegistryUnavailable       no member answered in time; the same call may succeed later
├── RegistryRefused           etcd answered no: credentials, permission, space, a malformed request
│   └── LeaseNotFound         the lease has expired or was revoked
├── Compacted                 the revision asked for is gone
└── CompareFailed             another writer was first
    └── NotLeading            the role has passed on to another instance

These stay inside a process: a service decides what, if anything, its caller is told.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from libs.registry.client import Entry

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # a member that shuts down; our own cancels never get here
        grpc.StatusCode.INTERNAL,  # a stream reset by a dying member
        grpc.StatusCode.UNKNOWN,  # etcd's "context canceled", among others
    }
)


class RegistryError(Exception):
    """Anything between us and etcd."""


class RegistryUnavailable(RegistryError):
    """No member answered in time. Whether a write took effect is not known."""


class RegistryRefused(RegistryError):
    """etcd answered no."""


class LeaseNotFound(RegistryRefused):
    """The lease has expired or was revoked, and its keys with it."""


class Compacted(RegistryError):
    """The revision asked for is gone: read again."""


class CompareFailed(RegistryError):
    """The key is not as expected; nothing was written.

    Args:
        message: One sentence for a developer.
        actual: The key as it is now; None when it does not exist.
    """

    def __init__(self, message: str, actual: "Entry | None" = None) -> None:
        super().__init__(message)
        self.actual = actual


class NotLeading(CompareFailed):
    """The role has passed on to another instance; nothing was written."""


def translate(error: grpc.aio.AioRpcError) -> RegistryError:
    """The error behind a status. Sources: etcd's api/v3rpc/rpctypes, which names the statuses."""
    code, details = error.code(), error.details() or ""
    text = f"{code.name}: {details}"
    if code in _AWAY:
        return RegistryUnavailable(text)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseNotFound(text)
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return Compacted(text)
    return RegistryRefused(text)


@contextmanager
def translated() -> Iterator[None]:
    """Around a call of grpc.aio: turns what it raises into a RegistryError.

    When a member ends a stream with CANCELLED, or the channel is closed, grpc.aio raises CancelledError in
    tasks that nobody cancelled; left alone it would end them without a word.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise translate(error) from error
    except asyncio.InvalidStateError as error:
        raise RegistryUnavailable("the stream has ended") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RegistryUnavailable("the call was ended under way") from None
