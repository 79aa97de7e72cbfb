"""A language model for Triton's python backend with the tensors of tensorrtllm_backend's `tensorrt_llm`.

Runs inside tritonserver. It computes no language: the next token follows from the checksum of all tokens so
far, so that the same prompt and tokens always go on the same way. All that counts for whoever drives it is
real: one loop that steps over everything in flight, decoupled answers, `stop`, cancellation polled at a
pace, blocks, the metrics' names, and errors in the backend's words.
"""

import json
import re
import struct
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
SNOWMAN = "\u2603".encode()
Tensors = dict[str, Any]
"""The inputs of a request, by name, as numpy arrays."""


class Running:
    """A work in the batch."""

    def __init__(self, request: Any, tensors: Tensors, seed: int) -> None:
        self.sender = request.get_response_sender()
        self.request_id = request.request_id()
        self.prompt = tensors["input_ids"].reshape(-1).tolist()
        self.left = int(tensors["request_output_len"].reshape(-1)[0])
        self.end_id = int(scalar(tensors, "end_id", -1))
        self.log_probs = bool(scalar(tensors, "return_log_probs", False))
        self.counted = bool(scalar(tensors, "return_num_output_tokens", False))
        self.perf = bool(scalar(tensors, "return_perf_metrics", False))
        self.crc = zlib.crc32(struct.pack(f"<{len(self.prompt)}i", *self.prompt), seed)
        self.made = 0
        self.shaped = self.end_id >= 0 and "guided_decoding_guide" in tensors
        if self.shaped:
            guide_type, guide = (tensors[f"guided_decoding_{name}"].reshape(-1)[0] for name in ("guide_type", "guide"))
            self.shaped = bool(shape := shaped(guide_type.decode(), guide.decode()))
        self.cum_log_prob = 0.0
        self.bytes = shape.encode() if self.shaped else b""
        self.reused = 0

    def next(self, world: dict[str, Any]) -> tuple[int, float]:
        """The next token, and its log-probability."""
        if world["snow"] in self.prompt and self.made == 0:
            self.bytes = SNOWMAN
        if self.bytes:
            token, self.bytes = world["bytes"][str(self.bytes[0])], self.bytes[1:]
        elif self.shaped or (self.end_id >= 0 and world["ends"] in self.prompt and self.crc % 11 == 0):
            token = self.end_id
        else:
            token = world["answers"][self.crc % len(world["answers"])]
        log_prob = -((self.crc >> 8) % 1000) / 1000
        self.crc = zlib.crc32(struct.pack("<i", token), self.crc)
        return token, log_prob


class TritonPythonModel:
    """See the module."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.world = json.loads(Path(parameters["world"]).read_text())
        self.step_s = float(parameters["step_s"])
        self.slots = int(parameters["slots"])
        self.blocks, self.block_tokens = int(parameters["blocks"]), int(parameters["block_tokens"])
        self.max_input = int(parameters["max_input_len"])
        self.adapters_held = int(parameters["adapters"])
        self.record = Path(parameters["record"])
        self.adapters: dict[int, int] = {}
        self.known: set[int] = set()
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.changed = threading.Condition()
        self.closing = False
        self._make_metrics(args["model_name"], args["model_version"], parameters["metrics"] == "yes")
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            sender = request.get_response_sender()
            if bool(scalar(tensors, "stop", False)):
                self._stop(request.request_id())
                sender.send(pb_utils.InferenceResponse(output_tensors=[]), flags=FINAL)
                continue
            self._note(request.request_id(), tensors)
            try:
                work = self._accept(request, tensors)
            except ValueError as error:
                self.count["refused"].increment(1)
                fail(sender, str(error))
                continue
            with self.changed:
                self.waiting.append(work)
                self.changed.notify()

    def finalize(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    def _accept(self, request: Any, tensors: Tensors) -> Running:
        tokens = tensors["input_ids"].size
        if tokens > self.max_input:
            raise ValueError(
                f"[TensorRT-LLM][ERROR] Assertion failed: Prompt length ({tokens}) exceeds maximum input length "
                f"({self.max_input}). Set log level to info and look"
            )
        if self.world["refuses"] in tensors["input_ids"]:
            raise ValueError("Executor failed process requestId 7 due to the following error: out of sorts")
        work = Running(request, tensors, self._adapter(tensors))
        ends = range(self.block_tokens, len(work.prompt) + 1, self.block_tokens)
        hashes = [zlib.crc32(np.array(work.prompt[:end], np.int32).tobytes()) for end in ends]
        work.reused = next((n for n, each in enumerate(hashes) if each not in self.known), len(hashes))
        self.known.update(hashes)
        return work

    def _adapter(self, tensors: Tensors) -> int:
        """The seed of an adapter's answers; the least recently used goes when too many are held."""
        if "lora_task_id" not in tensors:
            return 0
        task = int(scalar(tensors, "lora_task_id", 0))
        if "lora_weights" in tensors:
            self.adapters.pop(task, None)
            self.adapters[task] = zlib.crc32(tensors["lora_weights"].tobytes())
            while len(self.adapters) > self.adapters_held:
                del self.adapters[next(iter(self.adapters))]
        elif task in self.adapters:
            self.adapters[task] = self.adapters.pop(task)
        else:
            raise ValueError(f"LoRA task {task} not found in cache. Please send LoRA weights with request")
        return self.adapters[task]

    def _stop(self, request_id: str) -> None:
        with self.changed:
            for work in [*self.waiting, *self.running]:
                if work.request_id == request_id:
                    self._end(work, "stopped")

    def _run(self) -> None:
        next_poll = time.monotonic()
        while True:
            with self.changed:
                while not (self.waiting or self.running or self.closing):
                    self._tell()
                    self.changed.wait()
                if self.closing:
                    return
                if (now := time.monotonic()) >= next_poll:
                    next_poll = now + 0.1
                    for work in [*self.waiting, *self.running]:
                        if work.sender.is_cancelled():
                            self._end(work, "cancelled")
                while self.waiting and len(self.running) < self.slots:
                    self.count["started"].increment(1)
                    self.running.append(self.waiting.popleft())
                for work in list(self.running):
                    self._advance(work)
                self._tell()
            time.sleep(self.step_s)

    def _advance(self, work: Running) -> None:
        if self.world["fails"] in work.prompt and work.made == 3:
            self._leave(work)
            self.count["failed"].increment(1)
            fail(work.sender, "Executor failed process requestId 9 due to the following error: a bad step")
            return
        token, log_prob = work.next(self.world)
        work.made += 1
        work.left -= 1
        ended = token == work.end_id  # as in TensorRT-LLM, it is not part of the answer
        tokens = [] if ended else [token]
        work.cum_log_prob += log_prob
        last = ended or work.left <= 0
        outputs = [
            pb_utils.Tensor("output_ids", np.array([[tokens]], np.int32).reshape(1, 1, -1)),
            pb_utils.Tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
        ]
        if work.log_probs:
            outputs.append(pb_utils.Tensor("output_log_probs", np.full((1, 1, len(tokens)), log_prob, np.float32)))
            outputs.append(pb_utils.Tensor("cum_log_probs", np.array([[work.cum_log_prob]], np.float32)))
        if work.perf:
            outputs.append(pb_utils.Tensor("kv_cache_reused_blocks", np.array([[work.reused]], np.int32)))
        if work.counted:
            outputs.append(pb_utils.Tensor("num_output_tokens", np.array([[len(tokens)]], np.int32)))
        work.sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=FINAL if last else 0)
        if last:
            self._leave(work)
            self.count["finished"].increment(1)

    def _end(self, work: Running, how: str) -> None:
        self._leave(work)
        self.count[how].increment(1)
        work.sender.send(flags=FINAL)

    def _leave(self, work: Running) -> None:
        if work in self.running:
            self.running.remove(work)
        else:
            self.waiting.remove(work)

    def _note(self, request_id: str, tensors: Tensors) -> None:
        """What came with a request, for tests to read."""
        told = {
            name: [each.decode() if isinstance(each, bytes) else each for each in value.reshape(-1).tolist()]
            for name, value in tensors.items()
        }
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        line = {"model": self.name, "id": request_id, "tensors": told, "shapes": shapes}
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _make_metrics(self, model: str, version: str, backend_metrics: bool) -> None:
        labels = {"model": model, "version": version}
        self.families: list[Any] = []

        def family(name: str, kind: Any, label: str, values: tuple[str, ...]) -> dict[str, Any]:
            made = pb_utils.MetricFamily(name=name, description=name, kind=kind)
            self.families.append(made)
            return {value: made.Metric(labels={**labels, label: value}) for value in values}

        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        events = ("started", "finished", "stopped", "cancelled", "failed", "refused")
        self.count = family("test_model_works_total", counter, "event", events)
        self.kv: dict[str, Any] = {}
        self.requests: dict[str, Any] = {}
        if backend_metrics:
            blocks = ("max", "free", "used", "tokens_per", "reused", "fraction")
            self.kv = family("nv_trt_llm_kv_cache_block_metrics", gauge, "kv_cache_block_type", blocks)
            kinds = ("active", "max", "scheduled", "context", "waiting")
            self.requests = family("nv_trt_llm_request_metrics", gauge, "request_type", kinds)

    def _tell(self) -> None:
        if not self.kv:
            return
        used = sum(-(-(len(work.prompt) + work.made) // self.block_tokens) for work in self.running)
        values = {
            "max": self.blocks, "used": used, "free": self.blocks - used, "tokens_per": self.block_tokens,
            "fraction": used / self.blocks,
        }  # fmt: skip
        for kind, value in values.items():
            self.kv[kind].set(value)
        running, waiting = len(self.running), len(self.waiting)
        counts = {"active": running + waiting, "max": self.slots, "scheduled": running, "waiting": waiting}
        for kind, value in counts.items():
            self.requests[kind].set(value)


def shaped(guide_type: str, guide: str) -> str:
    """The least answer that a guide allows; "" for a guide that is beyond this model."""
    if guide_type == "json_schema":
        return json.dumps(instance(json.loads(guide)))
    literal = re.search(r"\((\w+)[|)]" if guide_type == "regex" else r'::= "(\w+)"', guide)
    return literal[1] if literal else ""


def instance(schema: dict[str, Any]) -> Any:
    """The least instance of a JSON schema of objects and strings."""
    if schema.get("type") == "object":
        return {name: instance(schema["properties"][name]) for name in schema.get("required", [])}
    return "mill"


def scalar(tensors: Tensors, name: str, default: Any) -> Any:
    """The one value of a tensor."""
    return tensors[name].reshape(-1)[0] if name in tensors else default


def fail(sender: Any, message: str) -> None:
    """An error, and the end."""
    sender.send(pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message)), flags=FINAL)
