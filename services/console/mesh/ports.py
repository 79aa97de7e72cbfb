"""Whether the ports that a mesh wants are free, and who holds those that are not."""

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Conflict:
    """A port that is taken."""

    port: int
    wanted_by: str
    held_by: str
    """The process that listens there, or an empty string where the system does not tell."""

    def __str__(self) -> str:
        holder = f"held by {self.held_by}" if self.held_by else "held by a process that the system does not name"
        return f"port {self.port}, wanted by {self.wanted_by}, is {holder}"


def conflicts(host: str, wanted: Mapping[int, str]) -> list[Conflict]:
    """The ports of `wanted` (port → who wants it) that cannot be bound now, by number."""
    taken = [port for port in sorted(wanted) if not _free(host, port)]
    holders = _holders(set(taken)) if taken else {}
    return [Conflict(port, wanted[port], holders.get(port, "")) for port in taken]


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection that lingers after a stop does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            return False
    return True


def _holders(ports: set[int]) -> dict[int, str]:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return {}
    holders: dict[int, str] = {}
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.pid:
            port = connection.laddr.port
            if port in ports:
                holders[port] = _name(connection.pid)
    return holders


def _name(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        words = process.cmdline() or [process.name()]
        line = " ".join([os.path.basename(words[0]), *words[1:]])
    except psutil.Error:
        return f"pid {pid}"
    return f"pid {pid} ({line[:60] + '…' if len(line) > 60 else line})"
