"""Settings of an executor."""

from dataclasses import dataclass
from pathlib import Path

from libs.settings import Etcd, Process


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from HEADRACE_<FIELD>; see libs.settings."""

    process: Process
    etcd: Etcd
    engine: str = "openvino"
    """"openvino", "simulated", "triton", "remote", "trtllm" or "vllm"; see docs/engines.md."""
    memory_bytes: int = 4 * 1024**3
    """What its models may use together, KV caches included."""
    cache_dir: Path = Path("~/.cache/headrace").expanduser()
    """Prepared models."""
    threads: int = 0
    """CPU threads of the OpenVINO engine; 0 lets it choose."""
    labels: tuple[str, ...] = ()
    """HEADRACE_LABELS: what it is, for placement: "zone=a,gpu=h100"."""
    trtllm_python: str = ""
    """The interpreter that has TensorRT-LLM, where that is not this one."""
    vllm_python: str = ""
    """The interpreter that has vLLM, where that is not this one."""
    step_tokens: int = 0
    """Tokens that one step of any of its models computes at most; 0 leaves that to the catalogue."""
    niceness: int = 0
    """Added to the priority of the OpenVINO engine's process, so that it leaves the rest of a machine usable."""
