"""Settings of an executor."""

from dataclasses import dataclass
from pathlib import Path

from libs.settings import Etcd, Process


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from HEADRACE_<FIELD>; see libs.settings."""

    process: Process
    etcd: Etcd
    engine: str = "openvino"
    """"openvino" or "simulated"."""
    memory_bytes: int = 4 * 1024**3
    """What its models may use together, KV caches included."""
    cache_dir: Path = Path("~/.cache/headrace").expanduser()
    """Prepared models."""
