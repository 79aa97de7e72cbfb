"""`python -m services.executor.vllm.environment [CACHE_DIR]`: vLLM in an environment of its own.

Makes it once per machine, in CACHE_DIR/tools, and prints its interpreter, which HEADRACE_VLLM_PYTHON is to name.
It is 3.4 GB and takes one and a half minutes on a good line. The executor does not import this: on a machine with
GPUs, any environment with vLLM 0.32 and msgspec will do.
"""

import subprocess
import sys
import venv
from hashlib import blake2b
from pathlib import Path

from libs.models.store import build_once

REQUIREMENTS = Path(__file__).with_name("requirements.txt")

TORCH = "torch"
"""Installed first, and with what it needs: which of its builds there is depends on the package index. vLLM's own
requirement names a build that not every index has, so everything else comes without looking at requirements."""


def main() -> int:
    """Reads the argument."""
    cache_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/headrace").expanduser()
    print(python_of(build_once(folder_of(cache_dir), _install, lambda: _say("another process installs it"))))
    return 0


def folder_of(cache_dir: Path) -> Path:
    """Where the environment is, or will be: other requirements or another Python are another environment."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = blake2b("\n".join([version, *_requirements()]).encode(), digest_size=6).hexdigest()
    return cache_dir.absolute() / "tools" / f"vllm-{digest}"


def python_of(folder: Path) -> Path:
    """The environment's interpreter."""
    return folder / "bin" / "python"


def _install(folder: Path) -> None:
    _say("installing vLLM (3.4 GB) ...")
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = [line for line in _requirements() if line.startswith(f"{TORCH}==")]
    subprocess.run([*pip, *torch], check=True)  # noqa: S603
    subprocess.run([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)], check=True)  # noqa: S603


def _requirements() -> list[str]:
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _say(text: str) -> None:
    print(f"headrace: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
