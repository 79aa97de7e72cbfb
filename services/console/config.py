"""What the console takes from the environment."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from HEADRACE_<FIELD>; see libs.settings. The services that it starts read the same."""

    cache_dir: Path = Path("~/.cache/headrace")
    """Prepared models."""
    otlp_endpoint: str = ""
    """Or OTEL_EXPORTER_OTLP_ENDPOINT: the collector of spans; without one they go to STATE/traces."""
    trace_ratio: float = 1.0
    """Share of requests that are traced when the caller did not decide."""
    drain_s: float = 10.0
    """Seconds that running requests get when a service stops."""
    notice_s: float = 0.5
    """Seconds for which admission still takes requests before that: Envoy asks every 0.5 s whether it does."""
