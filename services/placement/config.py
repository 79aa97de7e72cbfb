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
    churn_s: float = 600.0
    """A copy that has lain for less than this is not moved to make room, unless works wait."""
    residency_s: float = 5.0
    """A copy is not unloaded for another before it was ready this long."""
    backoff_s: float = 30.0
    """Until a model is tried again on an executor where it could not be loaded; doubles with each failure."""
