"""Which version is played, and what is to go wrong."""

import json
import os
import threading
from pathlib import Path
from typing import Any

VERSION = os.environ.get("TRTLLM_DOUBLE_VERSION", "1.3")
NEW = VERSION == "1.3"
STEP_S = float(os.environ.get("TRTLLM_DOUBLE_STEP_MS", "0")) / 1000
EVENT_BUFFER = int(os.environ.get("TRTLLM_DOUBLE_EVENT_BUFFER", "0"))
HASH = os.environ.get("TRTLLM_DOUBLE_HASH", "v1_block_key")
FAULT = os.environ.get("TRTLLM_DOUBLE_FAULT", "")
GUIDES: dict[str, list[int]] = json.loads(os.environ.get("TRTLLM_DOUBLE_GUIDES", "{}"))
"""Answers to guides; it has no grammar compiler."""

_folder = os.environ.get("TRTLLM_DOUBLE_FOLDER", "")
_lock = threading.Lock()


def record(call: str, **facts: Any) -> None:
    """Writes down what was asked of the engine, for tests to read."""
    if _folder:
        with _lock, (Path(_folder) / "calls.jsonl").open("a") as calls:
            calls.write(json.dumps({"call": call, **facts}, default=str) + "\n")


def publish(name: str, facts: Any) -> None:
    """Replaces a file of facts in one go."""
    if _folder:
        whole = Path(_folder) / name
        with _lock:
            part = whole.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(facts))
            part.rename(whole)
