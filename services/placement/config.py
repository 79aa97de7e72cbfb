"""Settings of the placement controller."""

from dataclasses import dataclass

from libs.settings import Etcd, Process


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from HEADRACE_<FIELD>; see libs.settings."""

    process: Process
    etcd: Etcd
    absence_s: float = 30.0
    """An executor that has gone keeps its placements this long: it may only be restarting."""
