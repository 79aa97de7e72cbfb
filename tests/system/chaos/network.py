"""A network of its own for every process, which can be cut and delayed between any two of them.

Each process of the mesh is in a network namespace with one address; a namespace in the middle, the hub, routes between
them. So a fault hits all connections of two processes, on whatever ports, in whichever direction. A cut is a routing
rule that drops packets: connections stay open, and nothing arrives, as when a cable is pulled. A delay is a rule that
sends packets through a TUN device, which this process reads: kernels of small machines have no netem.

Needs Linux, iproute2 and util-linux, and to be root of its own user, network and PID namespace: `ENTER` makes these.
"""

import asyncio
import fcntl
import os
import shlex
import socket
import struct
import subprocess
import tempfile
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

ENTER = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""In front of a command: it is root of a world of its own, and everything in it dies with it."""
SUBNET = "10.83.0"
HUB = f"{SUBNET}.1"
DEVICE = "slow0"
TABLE = "83"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
"""linux/if_tun.h"""


def enter() -> list[str]:
    """ENTER, for whoever is not root too."""
    return [*ENTER] if os.geteuid() == 0 else [*ENTER, "--map-root-user"]


def possible() -> str:
    """Empty when there can be such a network here; else why not, for a person."""
    needed = " && ".join([
        f"ip tuntap add dev {DEVICE} mode tun", "ip link add one type veth peer name other",
        "ip rule add pref 20 to 192.0.2.1 blackhole", f"mount -t tmpfs tmpfs {shlex.quote(tempfile.gettempdir())}",
        "nsenter --net=/proc/self/ns/net true",
    ])  # fmt: skip
    try:
        tried = subprocess.run([*enter(), "sh", "-c", needed], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if tried.returncode == 0 else tried.stderr.strip() or f"exit code {tried.returncode}"


class Network(AbstractContextManager["Network"]):
    """The hub, and a namespace for each name that was asked for.

    This process itself is on it, as the name it is opened with. Used within a running event loop.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses: dict[str, str] = {}
        self._delays: dict[tuple[str, str], float] = {}
        self._tun = -1

    def __enter__(self) -> Self:
        ip("link", "set", "lo", "up")
        self._hub = self._hold("hub")
        self._in_hub(
            "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter"
        )
        self._tun = _open_tun(DEVICE)
        ip("link", "set", DEVICE, "netns", self._hub)
        self._in_hub("sh", "-c", "for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $each; done")
        self._in_hub("ip", "link", "set", DEVICE, "up")
        self._in_hub("ip", "route", "add", "default", "dev", DEVICE, "table", TABLE)
        self._in_hub("ip", "rule", "add", "iif", DEVICE, "lookup", "main", "pref", "10")
        asyncio.get_running_loop().add_reader(self._tun, self._read)
        self._connect(self._own, str(os.getpid()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tun >= 0:
            asyncio.get_running_loop().remove_reader(self._tun)
            os.close(self._tun)
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def address(self, name: str) -> str:
        """The address of a process; its namespace is made with the first call."""
        if name not in self._addresses:
            self._connect(name, self._hold(name))
        return self._addresses[name]

    def prefix(self, name: str) -> list[str]:
        """In front of a command line: it runs there, with the pid that it gets here."""
        self.address(name)
        return ["nsenter", f"--net=/proc/{self._holders[name].pid}/ns/net"]

    def cut(self, one: str, other: str) -> None:
        """Drops what the first sends to the second; "" is everybody. Cutting twice needs mending twice."""
        self._rule("add", "20", one, other, "blackhole")

    def mend(self, one: str, other: str) -> None:
        """Ends a cut."""
        self._rule("del", "20", one, other, "blackhole")

    def delay(self, one: str, other: str, seconds: float) -> None:
        """Everything that the first sends to the second takes as much longer."""
        self._delays[self.address(one), self.address(other)] = seconds
        self._rule("add", "30", one, other, "lookup", TABLE)

    def hurry(self, one: str, other: str) -> None:
        """Ends a delay."""
        self._rule("del", "30", one, other, "lookup", TABLE)
        del self._delays[self.address(one), self.address(other)]

    def _rule(self, verb: str, preference: str, one: str, other: str, *what: str) -> None:
        ends = [*(["from", self.address(one)] if one else []), *(["to", self.address(other)] if other else [])]
        self._in_hub("ip", "rule", verb, "pref", preference, *ends, *what)

    def _hold(self, name: str) -> str:
        """A process that does nothing but keep a namespace; its pid."""
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        self._holders[name] = holder
        assert holder.stdout is not None
        holder.stdout.readline()  # it is in its namespace
        return str(holder.pid)

    def _connect(self, name: str, pid: str) -> None:
        number = len(self._addresses) + 10
        address, wire = f"{SUBNET}.{number}", f"wire{number}"
        self._in_hub("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", pid)
        self._in_hub("ip", "address", "add", f"{HUB}/32", "dev", wire)
        self._in_hub("ip", "link", "set", wire, "up")
        self._in_hub("ip", "route", "add", f"{address}/32", "dev", wire)
        inside = [] if name == self._own else ["nsenter", f"--net=/proc/{pid}/ns/net"]
        for words in (
            "link set lo up", f"address add {address}/32 dev eth0", "link set eth0 up",
            f"route add {HUB} dev eth0", f"route add default via {HUB}",
        ):  # fmt: skip
            _run(*inside, "ip", *words.split())
        self._addresses[name] = address

    def _in_hub(self, *words: str) -> None:
        _run("nsenter", f"--net=/proc/{self._hub}/ns/net", *words)

    def _read(self) -> None:
        """Holds packets back; what nobody delays any more passes at once."""
        while True:
            try:
                packet = os.read(self._tun, 65536)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4:
                continue
            pair = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
            asyncio.get_running_loop().call_later(self._delays.get(pair, 0.0), self._write, packet)

    def _write(self, packet: bytes) -> None:
        try:
            os.write(self._tun, packet)
        except OSError:
            pass  # the device is closed, or full: TCP sends it again


def ip(*words: str) -> None:
    """iproute2. Raises RuntimeError with what it says."""
    _run("ip", *words)


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ran.stderr.strip()}")


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device
