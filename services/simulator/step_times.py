"""How long the steps of engines on known GPUs take: a roofline from published figures. Pure.

A step reads all weights once, computes every token, and reads the keys and values of every context (the roofline of
Williams et al., CACM 2009). So its constants (libs.catalogue.Simulation) follow from the datasheet of the GPU, the
shape of the model, and the share of the peak that kernels reach. The shares are taken from measurements that others
have published:

- Reading weights: 0.685 of the bandwidth. gpt-fast (its README's table): Llama-2-7B in bf16 on an A100 80GB reads
  1,397 of 2,039 GB/s; the 70B on four reads 1,341 GB/s on each. Taken for all GPUs, and for reading keys and values.
- Tensor parallelism: 1.6 ms for each step more. That is the difference of the two figures above on a step of 26 ms.
- Computing prompts on an A100: 0.66 of the peak. TensorRT-LLM 0.6.1 (docs/source/performance.md): 2,048 tokens
  through LLaMA 7B in fp16 take 133 ms, 27.6 TFLOP at 208 TFLOP/s. LLaMA 70B on four: 377 ms, 0.61 of the peak.
- Computing prompts on an L40S: 0.5. The same page has 73 ms in FP8: 378 TFLOP/s, 0.52 of the FP8 peak.
- Computing prompts on an H100 or H200: 0.5, an assumption between two facts: the same page has 36 ms in FP8, 0.39 of
  the FP8 peak, which is twice the bf16 peak and harder to reach; and the A100's 0.66.
- Attention over prompts: 0.5 of the peak. FlashAttention-2 reaches 0.50 to 0.73 on an A100 (Dao, ICLR 2024) and
  FlashAttention-3 up to 0.75 on an H100 (Shah et al., 2024) on long, dense sequences; chunks over paged blocks less.
- Around each step: 1 ms for scheduling, launching and sampling, an assumption (vLLM and TensorRT-LLM overlap most
  of it with the step before).

These are models of such engines, not measurements of one. `headrace simulate calibrate` fits the constants to a live
executor. What policies are compared by depends little on them: only on their ratios.
"""

from dataclasses import dataclass

from libs.catalogue.options import Simulation

MOST_STEP_S = 0.045
"""A full step is to stay below this, so that 50 ms between tokens are kept."""
FULL_CONTEXT = 8192
"""Tokens in front of each prompt token of a full step."""
FULL_MEMORY = 0.25
"""Part of the KV cache that the sequences hold which decode in a full step."""
_ROUND = 128
_MEMORY_SHARE = 0.9
"""Of the GPU's memory, that engines take: the default of vLLM and TensorRT-LLM."""
_ACTIVATIONS = 2e9
"""Bytes on each GPU for activations and graphs."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU. Peaks are those of the datasheet: dense, bf16."""

    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second."""
    flops: float
    compute_share: float
    """Of the peak, that prompts reach outside attention."""
    read_share: float = 0.685
    attention_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder in bf16, as its config.json has it."""

    parameters: float
    vocabulary: int
    width: int
    layers: int
    kv_width: int
    """KV heads times the size of a head."""

    @property
    def embedding(self) -> float:
        """Parameters of the input table; the output table has as many."""
        return self.vocabulary * self.width

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_width * 2

    @property
    def attention_flops(self) -> int:
        """Of one token over one token in front of it: query times key, and weight times value."""
        return 4 * self.layers * self.width


@dataclass(frozen=True, slots=True)
class GpuClass:
    """An executor of a kind."""

    name: str
    step: Simulation
    blocks_tokens: int
    """Tokens that its KV cache holds."""
    slots: int
    step_tokens: int
    notes: str


GPUS = {
    # NVIDIA H100 datasheet, SXM: 80 GB HBM3, 3.35 TB/s, 1,979 TFLOPS bf16 with sparsity.
    "H100 SXM": Gpu(80e9, 3.35e12, 989.5e12, 0.5),
    # NVIDIA H200 datasheet, SXM: 141 GB HBM3e, 4.8 TB/s, 1,979 TFLOPS bf16 with sparsity.
    "H200 SXM": Gpu(141e9, 4.8e12, 989.5e12, 0.5),
    # NVIDIA A100 datasheet, SXM 80 GB: HBM2e, 2,039 GB/s, 312 TFLOPS bf16.
    "A100 SXM 80GB": Gpu(80e9, 2.039e12, 312e12, 0.66),
    # NVIDIA L40S datasheet: 48 GB GDDR6, 864 GB/s, 362 TFLOPS bf16 (733 with sparsity).
    "L40S": Gpu(48e9, 864e9, 362e12, 0.5),
}

MODELS = {
    # The model cards and config.json of meta-llama/Llama-3.1-8B and -70B.
    "Llama-3.1-8B": Model(8.03e9, 128_256, 4096, 32, 8 * 128),
    "Llama-3.1-70B": Model(70.55e9, 128_256, 8192, 80, 8 * 128),
}

_CLASSES = {
    "h100-8b": ("H100 SXM", 1, "Llama-3.1-8B"),
    "a100-8b": ("A100 SXM 80GB", 1, "Llama-3.1-8B"),
    "h100-70b-tp4": ("H100 SXM", 4, "Llama-3.1-70B"),
    "h200-70b-tp4": ("H200 SXM", 4, "Llama-3.1-70B"),
    "l40s-8b": ("L40S", 1, "Llama-3.1-8B"),
}

NAMES = tuple(_CLASSES)
"""What `gpu_class` knows."""


def gpu_class(name: str) -> GpuClass:
    """A class by its name. Raises ValueError for an unknown one."""
    if name not in _CLASSES:
        raise ValueError(f"no GPU class is named {name!r}; there are {', '.join(NAMES)}")
    gpu_name, count, model_name = _CLASSES[name]
    gpu, model = GPUS[gpu_name], MODELS[model_name]
    step = _step(gpu, count, model)
    weights = 2 * model.parameters
    room = count * (_MEMORY_SHARE * gpu.memory - _ACTIVATIONS) - weights
    tokens = int(room / model.kv_bytes)
    notes = f"{model_name} in bf16 on {f'{count} x ' if count > 1 else ''}{gpu_name}, a roofline from published figures"
    return GpuClass(name, step, tokens, 256, _step_tokens(step, tokens), notes)


def _step(gpu: Gpu, count: int, model: Model) -> Simulation:
    read = count * gpu.bandwidth * gpu.read_share
    compute = count * gpu.flops * gpu.compute_share
    behind_embedding = model.parameters - model.embedding  # the input table is looked up, not multiplied
    return Simulation(
        step_base_us=1000 + (1600 if count > 1 else 0),
        weights_us=_us(2 * behind_embedding / read),
        # Prompts need no logits but those of their last token: so the output table does not count.
        prefill_token_us=_us(2 * (behind_embedding - model.embedding) / compute),
        sequence_us=_us(2 * behind_embedding / compute),
        prefill_context_us=_us(1000 * model.attention_flops / (count * gpu.flops * gpu.attention_share)),
        decode_context_us=_us(1000 * model.kv_bytes / read),
    )


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _step_tokens(step: Simulation, tokens: int) -> int:
    """The largest multiple of _ROUND with which a full step stays below MOST_STEP_S, at least one."""
    count = _ROUND
    while step.step_s(count + _ROUND, (count + _ROUND) * FULL_CONTEXT, 0, FULL_MEMORY * tokens) < MOST_STEP_S:
        count += _ROUND
    return count
