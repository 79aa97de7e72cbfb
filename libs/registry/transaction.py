"""The conditions and operations of a transaction, as etcd's messages. Pure."""

from etcdserverpb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp


def unchanged(key: str, mod_revision: int) -> Compare:
    """Holds while the key was last written at this revision; 0: while it does not exist."""
    return Compare(
        result=Compare.EQUAL, target=Compare.MOD, key=key.encode(), mod_revision=mod_revision
    )  # etcd compares a missing key as revision 0


def created_at(key: str, create_revision: int) -> Compare:
    """Holds while the key lives that was created at this revision, whatever was written to it since."""
    return Compare(result=Compare.EQUAL, target=Compare.CREATE, key=key.encode(), create_revision=create_revision)


def put(key: str, value: bytes, lease: int = 0) -> RequestOp:
    """Writes the key."""
    return RequestOp(request_put=PutRequest(key=key.encode(), value=value, lease=lease))


def delete(key: str) -> RequestOp:
    """Deletes the key."""
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key.encode()))


def read(key: str) -> RequestOp:
    """Reads the key."""
    return RequestOp(request_range=RangeRequest(key=key.encode()))


def end_of(prefix: str) -> bytes:
    """The first key behind all keys that begin with the prefix, which is ASCII and not empty."""
    if not prefix or not prefix.isascii():
        raise ValueError(f"{prefix!r} cannot be the prefix of keys")
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])
