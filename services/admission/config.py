"""Settings of admission."""

from dataclasses import dataclass
from pathlib import Path

from libs.settings import Etcd, Process


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from HEADRACE_<FIELD>; see libs.settings."""

    process: Process
    etcd: Etcd
    cache_dir: Path = Path("~/.cache/headrace").expanduser()
    """Prepared models; admission needs their tokenizers."""
    notice_s: float = 1.0
    """Seconds on SIGTERM for which it still takes requests while its health says NOT_SERVING: more than whoever stands
    in front needs to notice."""
    trust_client_certificates: bool = False
    """Whether the header x-forwarded-client-cert is believed: set it where nobody but an Envoy that sets this header
    itself (`forward_client_cert_details: SANITIZE_SET`) can reach admission."""
