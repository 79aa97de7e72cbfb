"""Triton's own environment: tritonserver and its python backend, from the wheel `nvidia-pytriton`.

Made once per machine, in the cache folder, by the first test that needs it: about 10 s and 250 MB.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from libs.models.store import build_once

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CACHE = Path(os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")).expanduser()
RECIPE = "1"
"""Changes when what is made of the requirements does."""
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
INSTALL_S = 300.0


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """A virtual environment with all that tritonserver needs."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return self.folder / "lib" / f"python{VERSION}" / "site-packages"

    @property
    def binary(self) -> Path:
        """tritonserver."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """With the python backend and the stub of this Python."""
        return self.packages / "pytriton" / "tritonserver" / "backends"

    @property
    def variables(self) -> Mapping[str, str]:
        """For the server's process. The stub embeds Python, and takes for its environment the one whose
        `python3` is first on the PATH; PYTHONPATH it ignores."""
        libraries = [str(self.packages / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "OPENBLAS_NUM_THREADS": "1",
        }


def triton_environment(cache_dir: Path = CACHE) -> TritonEnvironment:
    """Makes the environment if it is not there; waits while another process makes it.

    Raises subprocess.CalledProcessError when the packages cannot be installed.
    """
    stamp = blake2b(f"{RECIPE} {VERSION} {REQUIREMENTS.read_text()}".encode(), digest_size=6).hexdigest()
    return TritonEnvironment(build_once(cache_dir / "tools" / f"triton-{stamp}", _build))


def _build(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    environment = TritonEnvironment(folder)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    source = ["--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]
    subprocess.run([*pip, *source, "--target", str(environment.packages)], check=True, timeout=INSTALL_S)
    stubs = environment.backends.parent / "python_backend_stubs"
    shutil.copy(stubs / VERSION / "triton_python_backend_stub", environment.backends / "python")
    shutil.rmtree(stubs)
