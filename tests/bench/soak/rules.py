"""The rules of the mesh that is soaked, as files laid over those of deploy/policy."""

from hashlib import sha256
from pathlib import Path

import yaml

from tests.bench.soak import mix

DEVELOPMENT_KEY = "headrace-dev-key"
"""Of the tenant in deploy/policy that operates."""
CATALOGUE = (
    {
        "name": mix.MODEL, "source": "simulated:", "engines": ["simulated"], "replicas": 0, "memory_bytes": 1_000_000,
        "adapter_memory_bytes": 8_000_000, "context_tokens": mix.CONTEXT, "blocks": 2048, "block_tokens": 32,
        "slots": 128, "step_tokens": 4096, "capabilities": ["chat", "log_probs"],
        "simulation": {"step_base_us": 10_000, "prefill_token_us": 5, "sequence_us": 20, "seed": 11},
    },
    {"name": mix.ADAPTER, "base": mix.MODEL, "source": "simulated:poet", "memory_bytes": 1_000_000},
)  # fmt: skip
NARROW = {"max_concurrency": 4, "requests_per_s": 5.0, "tokens_per_min": 20_000, "max_output_tokens": 64}
QUIET = {"prompt_storage": "PROMPT_STORAGE_NONE"}
"""Or the audit log would fill the disk: 100 MB in a minute. What NARROW says is kept."""
CONTRACTS = (
    {"name": mix.PLAIN, "max_output_tokens": 200},
    {"name": mix.BROKEN, "output_schema": mix.JSON_SCHEMA, "repairs": 1},
)


def key(tenant: str) -> str:
    """A tenant's API key."""
    return DEVELOPMENT_KEY if tenant == mix.OPERATOR else f"headrace-soak-{tenant}"


def write(folder: Path) -> None:
    """Tenants, models and contracts."""
    tenants = [
        {
            "name": name, "key_sha256": [sha256(key(name).encode()).hexdigest()],
            **(NARROW if name == mix.NARROW else QUIET),
        }
        for name in (*mix.ORDINARY, mix.GHOST, mix.NARROW)
    ]  # fmt: skip
    for kind, objects in (("tenants", tenants), ("models", CATALOGUE), ("contracts", CONTRACTS)):
        (folder / kind).mkdir(parents=True)
        for one in objects:
            (folder / kind / f"{one['name']}.yaml").write_text(yaml.safe_dump(dict(one)))
