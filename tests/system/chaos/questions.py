"""What is asked: a fixed row of questions from a seed, and the rules of the mesh that answers them."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from libs.client import GenerateOptions
from services.console.mesh import parts

MODEL = "chaos"
OPERATOR, OPERATOR_KEY = "dev", "headrace-dev-key"
STEADY = ("red", "green", "blue")
FICKLE = "gray"
"""The tenant of clients that leave: what they got is known, and not what was made for them."""
RECORDED = (*STEADY, FICKLE)
"""Tenants whose requests are recorded, and whose pages have to agree with the records."""
GHOST = "ghost"
"""The tenant of clients that are killed: nobody can say what they got."""
COUNT = 96
CATALOGUE = {
    "name": MODEL, "source": "simulated:", "engines": ["simulated"], "replicas": 0, "memory_bytes": 1_000_000,
    "context_tokens": 2048, "blocks": 512, "block_tokens": 16, "slots": 24, "step_tokens": 1024,
    "capabilities": ["chat", "log_probs"],
    "simulation": {"step_base_us": 15_000, "prefill_token_us": 10, "sequence_us": 50, "seed": 11},
}  # fmt: skip
TIERS = {
    "interactive": {"tier": "TIER_INTERACTIVE", "default_timeout": "90s", "max_timeout": "120s",
                    "max_waiting": 512, "max_waiting_tokens": 262_144, "target_first_token": "30s"},
    "async": {"tier": "TIER_ASYNC", "default_timeout": "90s", "max_timeout": "120s", "max_waiting": 512,
              "max_waiting_tokens": 262_144, "target_first_token": "60s", "age": "5s"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """One question, which has one answer."""

    prompt: str
    options: GenerateOptions


def questions(seed: int) -> Sequence[Question]:
    """Short and long ones, some with a common beginning, greedy and sampled, of both tiers."""
    chance = random.Random(f"questions {seed}")
    common = "The river rises in the hills and turns the wheels of nine mills before it reaches the sea. " * 4
    made = []
    for number in range(COUNT):
        prompt = f"{common if chance.random() < 0.4 else ''}Question {number} of {seed}: how deep is the water?"
        sampled = chance.random() < 0.5
        options = GenerateOptions(
            max_tokens=chance.choice((4, 16, 40, 80, 160)),
            temperature=1.0 if sampled else 0.0,
            seed=chance.randrange(2**31) if sampled else None,
            ignore_end=True,
            output="both",
            tier="async" if chance.random() < 0.25 else "interactive",
        )
        made.append(Question(prompt, options))
    return made


def key(tenant: str) -> str:
    """A tenant's API key."""
    return OPERATOR_KEY if tenant == OPERATOR else f"headrace-chaos-{tenant}"


def write_policy(folder: Path) -> None:
    """The rules of the mesh, as files: the scheduling and breakers as they come, the rest for this test."""
    shutil.copytree(parts.POLICY_DIR / "scheduling", folder / "scheduling")
    shutil.copytree(parts.POLICY_DIR / "breakers", folder / "breakers")
    tenants = {
        name: {"name": name, "key_sha256": [sha256(key(name).encode()).hexdigest()], "operator": name == OPERATOR}
        for name in (*RECORDED, GHOST, OPERATOR)
    }
    kinds: dict[str, dict[str, dict[str, Any]]] = {"tenants": tenants, "tiers": TIERS, "models": {MODEL: CATALOGUE}}
    for kind, objects in kinds.items():
        (folder / kind).mkdir()
        for name, one in objects.items():
            (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(one))
