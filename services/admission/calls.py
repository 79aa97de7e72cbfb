"""What all calls of the operations API have in common."""

from collections.abc import Iterator
from contextlib import contextmanager

from libs.errors import NotAllowed, StageUnavailable
from libs.registry.errors import RegistryError
from libs.rpc.call import CALL
from services.admission.policy import Tenant


def operator() -> Tenant:
    """The caller, if it may operate the mesh now. Raises NotAllowed, or CredentialsInvalid when it is nobody."""
    tenant: Tenant = CALL.get().who()
    if not tenant.operator:
        raise NotAllowed(f"tenant {tenant.name} is not an operator")
    return tenant


@contextmanager
def written(otherwise: str) -> Iterator[None]:
    """Around a call of etcd: its silence becomes StageUnavailable, with what the caller is to know."""
    try:
        yield
    except RegistryError as error:
        raise StageUnavailable(f"etcd does not answer; {otherwise}", retry_after_s=1.0) from error
