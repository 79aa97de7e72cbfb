"""How adapters are kept."""

from dataclasses import dataclass, field


@dataclass
class LoraConfig:
    """Of a model that takes adapters with its requests."""

    lora_dir: list[str] = field(default_factory=list)
    lora_ckpt_source: str = "hf"
    max_lora_rank: int = 64
    lora_target_modules: list[str] = field(default_factory=list)
    trtllm_modules_to_hf_modules: dict[str, str] = field(default_factory=dict)
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    swap_gate_up_proj_lora_b_weight: bool = True

    def __post_init__(self) -> None:
        if not self.lora_dir and not self.lora_target_modules:
            raise ValueError("lora_target_modules is empty.")
