"""Every system that can be compared, by the name on the command line."""

from tests.bench.peers.systems.dynamo import Dynamo, DynamoKv, DynamoMigration
from tests.bench.peers.systems.fastapi import FastApi
from tests.bench.peers.systems.headrace import Headrace, HeadraceMonolith, HeadraceTraced
from tests.bench.peers.systems.http_engines import (
    Direct,
    LiteLlm,
    SglangRouter,
    Smg,
    VllmRouter,
    VllmRouterRoundRobin,
)
from tests.bench.peers.systems.system import System

SYSTEMS: dict[str, type[System]] = {
    "direct": Direct,
    "headrace": Headrace,
    "headrace_monolith": HeadraceMonolith,
    "headrace_traced": HeadraceTraced,
    "vllm_router": VllmRouter,
    "vllm_router_rr": VllmRouterRoundRobin,
    "sglang_router": SglangRouter,
    "smg": Smg,
    "dynamo": Dynamo,
    "dynamo_kv": DynamoKv,
    "dynamo_migration": DynamoMigration,
    "fastapi": FastApi,
    "litellm": LiteLlm,
}
USUAL = [name for name in SYSTEMS if name not in ("headrace_traced", "dynamo_kv")]
