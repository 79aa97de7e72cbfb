"""Admission's front with real desks around it, none of which writes anywhere: what tests put works into."""

from collections.abc import Callable
from pathlib import Path

from libs.clock import Clock
from libs.lane.forwarder import Forwarder
from libs.models.tokenizers import Tokenizers
from libs.registry import EtcdClient, Registry
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import untraced
from services.admission.audit import Audit
from services.admission.contracts.start import Contracts
from services.admission.desks import Desks
from services.admission.front import Front
from services.admission.ladder import Ladders
from services.admission.limits.limits import Limits
from services.admission.observe import Observer
from services.admission.policy import Policy


def front(
    forwarder: Forwarder, policy: Callable[[], Policy], tokenizers: Tokenizers, clock: Clock, tasks: Tasks, folder: Path
) -> Front:
    """A front whose audit log is never started, and whose contracts are never opened: etcd is not there.

    Args:
        folder: Where the audit log would be.
    """
    metrics = Metrics("admission", "admission-0", "0")
    nowhere = Registry(EtcdClient(["127.0.0.1:1"], None))
    desks = Desks(
        policy,
        Limits("admission-0"),
        Ladders(policy),
        Contracts(policy, nowhere, clock, untraced(), metrics),
        Audit(folder, "admission-0", lambda tenant: 30, lambda lost: None, clock),
        tokenizers,
        Observer(metrics),
    )
    return Front(forwarder, desks, clock, tasks)
