"""The dispatch policies: how the executor of a work is chosen. Which one rules is the operator's choice, by model.

`promise` is Headrace's own. The others are those of its peers, each in the best form that its source has, so that
they can be compared on one queue, one index and one engine.
"""

from collections.abc import Callable, Mapping

from services.batcher.policies.block_cost import BlockCost
from services.batcher.policies.cache_aware import CacheAware
from services.batcher.policies.least_requests import LeastRequests
from services.batcher.policies.policy import Policy
from services.batcher.policies.power_of_two import PowerOfTwo
from services.batcher.policies.promise import Promise
from services.batcher.policies.round_robin import RoundRobin
from services.batcher.policies.weighted_scores import WeightedScores
from services.batcher.scheduling import Dispatch, SchedulingRules

_MAKERS: Mapping[Dispatch, Callable[[SchedulingRules], Policy]] = {
    Dispatch.PROMISE: Promise,
    Dispatch.ROUND_ROBIN: lambda _: RoundRobin(),
    Dispatch.LEAST_REQUESTS: lambda _: LeastRequests(),
    Dispatch.POWER_OF_TWO: lambda _: PowerOfTwo(),
    Dispatch.CACHE_AWARE: lambda _: CacheAware(),
    Dispatch.BLOCK_COST: lambda _: BlockCost(),
    Dispatch.WEIGHTED_SCORES: lambda _: WeightedScores(),
}

NAMES: Mapping[str, Dispatch] = {dispatch.name.lower(): dispatch for dispatch in Dispatch}
"""All policies by name: what `Policy.name` says, and what a person types."""


def make(scheduling: SchedulingRules) -> Policy:
    """The policy that the rules name, with a memory of its own: one for each pool."""
    return _MAKERS[scheduling.dispatch](scheduling)
