"""Who sends how much: the counts of all processes of admission, summed."""

from headrace.operations.v1.operations_pb2 import TenantUsage
from headrace.policy.v1.policy_pb2 import Tenant
from services.console.tenants_view import senders

TENANTS = [
    Tenant(name="calm", protected=True),
    Tenant(name="noisy", tokens_per_min=1000, requests_per_s=100, max_concurrency=50),
    Tenant(name="quiet"),
]


def test_the_noisiest_comes_first_over_all_processes() -> None:
    one = [
        TenantUsage(tenant="calm", running=3, requests_per_s=2, tokens_per_min=500),
        TenantUsage(tenant="noisy", running=4, requests_per_s=5, tokens_per_min=400, refused=7, requests=10),
    ]
    two = [TenantUsage(tenant="noisy", running=1, requests_per_s=6, tokens_per_min=800, refused=1, requests=2)]
    noisy, calm, quiet = senders(TENANTS, [one, two])
    assert (noisy.tenant, calm.tenant, quiet.tenant) == ("noisy", "calm", "quiet")
    assert (noisy.running, noisy.requests_per_s, noisy.tokens_per_min) == (5, 11, 1200)
    assert (noisy.refused, noisy.requests) == (8, 12)
    assert noisy.used == 1.2, "of its tokens, which it has used most of"
    assert calm.used == 0
    assert (noisy.limited, calm.limited, calm.protected) == (True, False, True)
    assert quiet.running == 0


def test_a_tenant_that_is_gone_still_counts() -> None:
    [gone, *_] = senders(TENANTS, [[TenantUsage(tenant="gone", running=1, tokens_per_min=1)]])
    assert (gone.tenant, gone.tokens_per_min_limit) == ("gone", 0)
