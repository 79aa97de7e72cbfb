"""Who asked for what kind of thing, which rule decided, and what operators changed: an append-only log of files."""

from services.admission.audit.audit import Audit
from services.admission.audit.entry import Entry

__all__ = ["Audit", "Entry"]
