"""The registry as services use it: messages under keys, in etcd."""

from google.protobuf.message import Message

from libs.registry.announcement import Announcement
from libs.registry.client import EtcdClient
from libs.registry.election import Election
from libs.registry.mirror import Mirror
from libs.registry.replica import Replica
from libs.registry.values import M, decode, encode
from libs.settings import Etcd


class Registry:
    """Reads, writes and follows messages in etcd; `keys` says where they lie.

    Methods raise RegistryUnavailable and RegistryRefused.

    Args:
        client: The connection; closed with the registry.
    """

    def __init__(self, client: EtcdClient) -> None:
        self.client = client

    @classmethod
    def from_settings(cls, settings: Etcd) -> "Registry":
        """A registry on a connection of its own. Raises OSError for missing certificates."""
        return cls(EtcdClient.from_settings(settings))

    async def put_message(self, key: str, message: Message) -> int:
        """Writes a message; returns the revision."""
        return await self.client.put(key, encode(message))

    async def get_message(self, key: str, message_type: type[M]) -> M | None:
        """Reads a message; None when there is none. Raises ValueUnreadable."""
        entry = await self.client.get(key)
        return None if entry is None else decode(entry.value, message_type)

    async def get_messages(self, prefix: str, message_type: type[M]) -> dict[str, M]:
        """Reads the messages under a prefix, by the rest of their key; logs and skips unreadable ones."""
        _, entries = await self.client.get_prefix(prefix)
        replica = Replica(message_type, 0.0)
        replica.replace({entry.key.removeprefix(prefix): entry.value for entry in entries}, 0.0, again=False)
        return dict(replica.items)

    async def delete(self, key: str) -> bool:
        """Deletes a key; returns whether there was one."""
        return await self.client.delete(key)

    def announce(self, key: str, ttl_s: int = 5) -> Announcement:
        """An announcement, not started yet."""
        return Announcement(self.client, key, ttl_s)

    def mirror(self, prefix: str, message_type: type[M], *, hold_deletions_s: float = 0.0) -> Mirror[M]:
        """A live copy of a prefix, not started yet."""
        return Mirror(self.client, prefix, message_type, hold_deletions_s=hold_deletions_s)

    def stand_for(self, role: str, instance: str, ttl_s: int = 5) -> Election:
        """An election, not started yet."""
        return Election(self.client, role, instance, ttl_s)

    async def close(self) -> None:
        """Closes the connection. Close announcements, mirrors and elections first."""
        await self.client.close()

    async def __aenter__(self) -> "Registry":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
