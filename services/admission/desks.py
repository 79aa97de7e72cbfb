"""What every request passes in this process."""

from collections.abc import Callable
from dataclasses import dataclass

from libs.catalogue import ModelSpec
from libs.errors import Overloaded
from libs.lane.work import Tier
from libs.models.tokenizers import Tokenizers
from services.admission.audit import Audit
from services.admission.contracts.start import Contracts
from services.admission.ladder import Effects, Ladders
from services.admission.limits.limits import Limits
from services.admission.observe import Observer
from services.admission.policy import Policy, Storage, Tenant
from services.admission.request import Request


@dataclass(frozen=True, slots=True)
class Desks:
    """Each is kept up to date by whoever made it."""

    policy: Callable[[], Policy]
    limits: Limits
    ladders: Ladders
    contracts: Contracts
    audit: Audit
    tokenizers: Tokenizers
    observer: Observer

    def effects(self, spec: ModelSpec, tier: Tier, tenant: Tenant, now: float) -> Effects:
        """What the ladder asks of such a request. `now` is in monotonic seconds."""
        return self.ladders.effects(spec.base or spec.name, tier, tenant.protected, now)

    def storage(self, request: Request, tenant: Tenant) -> Storage:
        """What the audit log keeps of a request's texts: the stricter of what the tenant and the contract say."""
        contract = self.policy().contracts.get(request.contract)
        if contract is None or contract.prompt_storage is None:
            return tenant.prompt_storage
        return min(tenant.prompt_storage, contract.prompt_storage)


def refuse(effects: Effects) -> None:
    """Raises Overloaded where the ladder's last rung is in force."""
    if effects.reject:
        metadata = {"degradation": ", ".join(effects.rungs), "level": str(effects.level)}
        raise Overloaded(effects.reason, metadata=metadata, retry_after_s=effects.retry_after_s)
