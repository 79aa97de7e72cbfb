"""Settings of a router."""

from dataclasses import dataclass
from pathlib import Path

from libs.settings import Etcd, Process


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from HEADRACE_<FIELD>; see libs.settings."""

    process: Process
    etcd: Etcd
    cache_dir: Path = Path("~/.cache/headrace").expanduser()
    """Prepared models; a router needs the tokenizers of those in cascades."""
    intents: Path | None = None
    """What `headrace intents train` wrote; unset: intents.npz in the state folder. Only routes with rules on
    intents need it."""
