"""An environment of its own for each peer, made once per machine, in the cache that the engines use too.

    python -m tests.bench.peers.environments [NAME ...]

Versions are pinned for what is measured; what a package needs beside that, pip chooses. Another pin, or another Python,
is another folder. Nothing is ever installed into Headrace's own environment.
"""

import subprocess
import sys
import venv
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from libs.models.store import build_once

CACHE = Path("~/.cache/headrace").expanduser()


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed. Order matters: `alone` comes first, without what it says it needs."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("fastapi", ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")),
        Environment("vllm-router", ("vllm-router==0.1.17",)),
        Environment("sglang-router", ("sglang-router==0.3.2",)),
        Environment("smg", ("smg==1.13.0",)),
        Environment("litellm", ("litellm[proxy]==1.106.2",)),
        # Dynamo asks for all its engines' tools, and for one package that fetches another; a frontend and simulated
        # workers do with these.
        Environment(
            "dynamo",
            (
                "pydantic>=2.10.6,<=2.13.5", "uvloop>=0.21", "aiohttp<4", "certifi", "msgspec>=0.19",
                "prometheus-client>=0.23.1,<1", "pyzmq>=26", "redis>=6.2,<9", "tqdm", "transformers>=4.56",
                "typing-extensions", "zstandard<1", "kubernetes>=32.0.1,<33",
            ),
            alone=("ai-dynamo-runtime==1.6.1", "ai-dynamo==1.6.1"),
        ),
    )
}  # fmt: skip


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there (seconds to two minutes).

    Raises subprocess.CalledProcessError when pip fails; it has said why on stderr.
    """
    environment = ENVIRONMENTS[name]
    return build_once(_folder(environment), lambda folder: _install(folder, environment)) / "bin" / "python"


def _folder(environment: Environment) -> Path:
    told = "\n".join([sys.version, sys.base_prefix, *environment.alone, *environment.packages])
    return CACHE / "tools" / f"peer-{environment.name}-{blake2b(told.encode(), digest_size=6).hexdigest()}"


def _install(folder: Path, environment: Environment) -> None:
    print(f"headrace: installing {environment.name} ...", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if environment.alone:
        subprocess.run([*pip, "--no-deps", *environment.alone], check=True)
    subprocess.run([*pip, *environment.packages], check=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ENVIRONMENTS:
        print(python_of(wanted))
