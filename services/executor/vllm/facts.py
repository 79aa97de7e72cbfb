"""What a Hugging Face folder says of its model. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.executor.vllm.wire import Defaults


@dataclass(frozen=True, slots=True)
class Facts:
    """What is needed to check works, beside the tokenizer."""

    vocabulary: int
    """Token ids are below this."""
    context_tokens: int
    """That the model was made for; 0 when it does not say."""
    defaults: Defaults


def facts_of(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Facts:
    """Reads config.json and generation_config.json. Raises ValueError when the vocabulary's size is missing."""
    text = {**config, **config.get("text_config", {})}  # of a model that also sees or hears
    if "vocab_size" not in text:
        raise ValueError("its config.json has no vocab_size")
    sampled = generation.get("do_sample", True)
    known = {
        name: generation[name]
        for name in ("temperature", "top_p", "top_k", "repetition_penalty")
        if generation.get(name) is not None and (sampled or name == "repetition_penalty")
    }
    return Facts(int(text["vocab_size"]), int(text.get("max_position_embeddings", 0)), Defaults(**known))
