"""What is known of the mesh, in etcd: who is there, what is placed where, which rules hold.

`Registry` reads and writes messages; `Announcement` keeps one leased key alive; `Mirror` is a live copy of a
prefix; `Election` finds one leader. All of them bear etcd's absence: nothing here ends a process.
"""

from libs.registry import keys
from libs.registry.announcement import Announcement
from libs.registry.client import Entry, EtcdClient, Status
from libs.registry.connection import TlsFiles
from libs.registry.election import Election
from libs.registry.errors import (
    Compacted,
    CompareFailed,
    LeaseNotFound,
    NotLeading,
    RegistryError,
    RegistryRefused,
    RegistryUnavailable,
)
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from libs.registry.values import ValueUnreadable, decode, encode

__all__ = [
    "Announcement",
    "Compacted",
    "CompareFailed",
    "Election",
    "Entry",
    "EtcdClient",
    "LeaseNotFound",
    "Mirror",
    "NotLeading",
    "Registry",
    "RegistryError",
    "RegistryRefused",
    "RegistryUnavailable",
    "Status",
    "TlsFiles",
    "ValueUnreadable",
    "decode",
    "encode",
    "keys",
]
