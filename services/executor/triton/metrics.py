"""What a Triton server's /metrics says of a model's blocks. Pure; Prometheus text format."""

import re
from dataclasses import dataclass

BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
"""Its label kv_cache_block_type is max, free, used, tokens_per, reused or fraction (TensorRT-LLM's
custom_metrics_reporter.cc)."""

_LINE = re.compile(rf"^{BLOCKS}\{{(?P<labels>[^}}]*)\}}\s+(?P<value>\S+)", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """The blocks of a model at one moment."""

    capacity: int
    used: int
    block_tokens: int


def kv_blocks(text: str, model: str) -> KvBlocks | None:
    """The model's blocks; None where the server does not tell them, or has not yet."""
    values: dict[str, float] = {}
    for line in _LINE.finditer(text):
        labels = dict(_LABEL.findall(line["labels"]))
        if labels.get("model") == model:
            try:
                values[labels.get("kv_cache_block_type", "")] = float(line["value"])
            except ValueError:
                continue
    if values.get("max", 0) < 1 or values.get("tokens_per", 0) < 1:
        return None
    return KvBlocks(int(values["max"]), int(values.get("used", 0)), int(values["tokens_per"]))
