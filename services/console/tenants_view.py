"""Who sends how much: what the processes of admission count, summed. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2


@dataclass(frozen=True, slots=True)
class Sender:
    """One tenant, over all processes. Limits of 0 are none."""

    tenant: str
    protected: bool
    requests_per_s: float
    requests_per_s_limit: float
    tokens_per_min: float
    tokens_per_min_limit: int
    running: int
    running_limit: int
    requests: int
    refused: int
    prompt_tokens: int
    output_tokens: int

    @property
    def limited(self) -> bool:
        """Whether it has any limit."""
        return bool(self.requests_per_s_limit or self.tokens_per_min_limit or self.running_limit)

    @property
    def used(self) -> float:
        """Of its limits, the one that it has used most of; more than 1: it asks for more than it may."""
        return max(
            _of(self.requests_per_s, self.requests_per_s_limit),
            _of(self.tokens_per_min, self.tokens_per_min_limit),
            _of(self.running, self.running_limit),
        )


def senders(tenants: Sequence[policy_pb2.Tenant], usages: Sequence[Sequence[pb.TenantUsage]]) -> list[Sender]:
    """The noisiest first: by tokens per minute, requests per second, requests in flight, and at last by name.

    Args:
        usages: Of each process.
    """
    limits: Mapping[str, policy_pb2.Tenant] = {tenant.name: tenant for tenant in tenants}
    by_tenant: dict[str, list[pb.TenantUsage]] = {name: [] for name in limits}
    for process in usages:
        for usage in process:
            by_tenant.setdefault(usage.tenant, []).append(usage)
    found = [_sum(limits.get(name, policy_pb2.Tenant(name=name)), each) for name, each in by_tenant.items()]
    return sorted(found, key=lambda each: (-each.tokens_per_min, -each.requests_per_s, -each.running, each.tenant))


def _sum(tenant: policy_pb2.Tenant, usages: Sequence[pb.TenantUsage]) -> Sender:
    return Sender(
        tenant=tenant.name,
        protected=tenant.protected,
        requests_per_s=sum(each.requests_per_s for each in usages),
        requests_per_s_limit=tenant.requests_per_s,
        tokens_per_min=sum(each.tokens_per_min for each in usages),
        tokens_per_min_limit=tenant.tokens_per_min,
        running=sum(each.running for each in usages),
        running_limit=tenant.max_concurrency,
        requests=sum(each.requests for each in usages),
        refused=sum(each.refused for each in usages),
        prompt_tokens=sum(each.prompt_tokens for each in usages),
        output_tokens=sum(each.output_tokens for each in usages),
    )


def _of(value: float, limit: float) -> float:
    return value / limit if limit else 0.0
