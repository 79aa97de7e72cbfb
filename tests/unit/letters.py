"""A model whose every token is one byte, and one admission policy: what tests of admission are made of."""

import json
from functools import cache

from libs.catalogue import ModelSpec
from libs.lane.work import Tier
from libs.tokens.tokenizer import Tokenizer
from services.admission.policy import Alias, Policy, Tenant, TierPolicy

TEMPLATE = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}a:"


@cache
def tokenizer() -> Tokenizer:
    """Token n is the byte n."""
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
    document: dict[str, object] = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "added_tokens": [], "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE", "vocab": {**pieces, "<unk>": 256}, "merges": [], "unk_token": "<unk>",
            "byte_fallback": True, "fuse_unk": True,
        },
    }  # fmt: skip
    return Tokenizer(json.dumps(document), {"chat_template": TEMPLATE})


def tokens(text: str) -> list[int]:
    """A text as this model's tokens."""
    return list(text.encode())


SPEC = ModelSpec(
    "letters", "letters:", context_tokens=100, blocks=64, block_tokens=16, slots=8, step_tokens=512,
    capabilities=("chat", "grammar", "log_probs"),
)  # fmt: skip
TENANT = Tenant("t")
POLICY = Policy(
    tiers={Tier.INTERACTIVE: TierPolicy(60, 600), Tier.ASYNC: TierPolicy(3600, 86_400)},
    models={"letters": SPEC, "bare": ModelSpec("bare", "letters:", 100, 64, 16, 8, 512)},
    aliases={"nice": Alias("letters"), "dangling": Alias("nobody")},
    models_off={},
)
