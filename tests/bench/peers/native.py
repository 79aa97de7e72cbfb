"""The load generators and the simulated engine in C, compiled once per machine. Needs a C compiler (`cc`)."""

import subprocess
from hashlib import blake2b
from pathlib import Path

from libs.models.store import build_once
from tests.bench.peers.environments import CACHE

SOURCES = Path(__file__).with_name("native")
PROGRAMS = ("sse_load", "grpc_load", "sse_engine")


def program(name: str) -> Path:
    """The path of one of PROGRAMS. Raises subprocess.CalledProcessError when it does not compile."""
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = blake2b(b"\0".join(source.read_bytes() for source in sources), digest_size=6).hexdigest()
    return build_once(CACHE / "tools" / f"peers-native-{digest}", _compile) / name


def _compile(folder: Path) -> None:
    for name in PROGRAMS:
        command = ["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", str(folder / name)]
        subprocess.run([*command, str(SOURCES / f"{name}.c"), "-lm"], check=True)
