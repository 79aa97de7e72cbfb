"""The engine: a thread that makes steps.

`TRTLLM_DOUBLE_FAULT`: while it is imported "import", "hang", "old" and "unsalted" (versions that lack something);
while it loads "oom" and "crash"; then "garbage" (a token too few), "block size" (other blocks than asked for),
"untold" (tells no block count). A prompt that holds POISON is the engine's end; or, by the fault, it is "unhealthy"
from then on, its "stats" cannot be read, the request has a "timeout", or is "cancelled" by the engine.
"""

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tensorrt_llm.executor.result import IterationResult, Logprob, RequestOutput, Response
from tensorrt_llm.flavor import EVENT_BUFFER, FAULT, GUIDES, STEP_S, publish, record
from tensorrt_llm.runtime.cache import HOST_BLOCK_BYTES, Block, Cache, Events
from tensorrt_llm.runtime.hashing import get_cache_salt_id

POISON = 31_337
SLOW_DISPATCH = 24
"""Steps between two hand-overs of events, where the buffer is small on purpose."""


@dataclass
class Request:
    """On its way through the engine."""

    result: RequestOutput
    salt: str | None
    lora: Any
    priority: float
    tokens: list[int] = field(default_factory=list)
    made: int = 0
    computed: int = 0
    held: list[Block] = field(default_factory=list)
    private: int = 0
    cached: int = 0

    @property
    def owner(self) -> tuple[int | None, int | None]:
        salt_id = get_cache_salt_id(self.salt) if self.salt is not None else None
        return salt_id, self.lora.lora_int_id if self.lora is not None else None


class Engine:
    """Answers requests until `shutdown`."""

    def __init__(self, args: Any, end_id: int, vocabulary: int) -> None:
        cache = args.kv_cache_config
        self._vocabulary = vocabulary
        self.args = args
        self._end_id = end_id
        size = cache.tokens_per_block
        most = (EVENT_BUFFER or cache.event_buffer_max_size) if cache.event_buffer_max_size else 0
        self._events = Events(most, args.max_seq_len or 4096)
        self._cache = Cache(
            (cache.max_tokens or 4096) // size, size, (cache.host_cache_size or 0) // HOST_BLOCK_BYTES, self._events
        )
        if FAULT == "untold":
            self._events.take()
        self._lock = threading.Condition()
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._cancelled: set[int] = set()
        self._stopped = False
        self._steps = 0
        self.healthy = True
        self.events: IterationResult | None = None
        self.stats: IterationResult | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        with self._lock:
            self._waiting.append(request)
            self._lock.notify()

    def cancel(self, request_id: int) -> None:
        record("abort", id=request_id)
        with self._lock:
            self._cancelled.add(request_id)
            self._lock.notify()

    def shutdown(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._stopped or self._waiting or self._running or self._cancelled):
                    self._dispatch()
                    self._tell_truth()
                    self._lock.wait()
                if self._stopped:
                    return
                self._drop()
                self._admit()
            if STEP_S:
                time.sleep(STEP_S)
            try:
                self._step()
            except Exception as error:
                for request in [*self._running, *self._waiting]:
                    request.result.queue.put(Response(error=error, final=True))
                self._stopped = True
                return

    def _drop(self) -> None:
        for request in [*self._running, *self._waiting]:
            if request.result.request_id in self._cancelled:
                self._end(request, Response(finish_reason="cancelled", final=True))
        self._cancelled.clear()

    def _admit(self) -> None:
        self._waiting.sort(key=lambda request: -request.priority)
        while self._waiting and len(self._running) < self.args.max_batch_size:
            request = self._waiting[0]
            prompt, params = request.result.prompt_token_ids, request.result.sampling_params
            if (fault := self._fault(request)) or len(prompt) >= (self.args.max_seq_len or 4096):
                text = fault or f"The prompt length ({len(prompt)}) should be less than max_seq_len"
                self._end(request, Response(error=text, final=True))
                continue
            found = self._cache.enter(prompt, len(prompt) + params.max_tokens, request.owner)
            if found is None:
                return
            self._waiting.pop(0)
            self._running.append(request)
            size = self._cache.block_tokens
            request.held, request.tokens = found, list(prompt)
            request.private = -(-(len(prompt) + params.max_tokens) // size) - len(found)
            request.cached = request.computed = len(found) * size

    def _fault(self, request: Request) -> str:
        guide = request.result.sampling_params.guided_decoding
        text = (guide.json or guide.regex or guide.grammar or "") if guide else ""
        if guide and self.args.guided_decoding_backend is None:
            return "Guided decoding is not enabled: set guided_decoding_backend"
        if "(((" in str(text):
            return "Grammar error: Unbalanced parenthesis\n  at /opt/xgrammar/cpp/regex_converter.cc:99"
        if max(request.result.prompt_token_ids) >= self._vocabulary:
            return "Token ID out of range (1 requests)"
        if request.lora is not None:
            settings = Path(request.lora.lora_path) / "adapter_config.json"
            with contextlib.suppress(OSError):
                rank = json.loads(settings.read_text()).get("r", 1)
                if rank > self.args.lora_config.max_lora_rank:
                    return f"LoRA rank {rank} exceeds max_lora_rank {self.args.lora_config.max_lora_rank}"
            if not settings.exists():
                return f"{settings} does not exist"
        return ""

    def _step(self) -> None:
        self._steps += 1
        budget = self.args.max_num_tokens
        for request in list(self._running):
            prompt = request.result.prompt_token_ids
            if POISON in prompt:
                if FAULT == "unhealthy":
                    self.healthy = False
                elif FAULT in ("timeout", "cancelled"):
                    self._end(request, Response(finish_reason=FAULT, final=True))
                    continue
                elif FAULT != "stats":
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if request.computed < len(prompt):
                chunk = min(len(prompt) - request.computed, budget)
                budget -= chunk
                request.computed += chunk
                if request.computed < len(prompt):
                    continue
                request.private -= self._cache.store(request.held, prompt, request.owner, final=False)
            self._make(request)
        self._tell_stats()
        if not EVENT_BUFFER or self._steps % SLOW_DISPATCH == 0:
            self._dispatch()

    def _make(self, request: Request) -> None:
        params = request.result.sampling_params
        token = next_token(request.tokens, request.lora.lora_path if request.lora else "", params)
        ends = token % 512 == 0 and not params.ignore_eos
        guide = params.guided_decoding
        if guide and (answer := GUIDES.get(str(guide.json or guide.regex or guide.grammar))) is not None:
            ends = request.made == len(answer)
            token = token if ends else answer[request.made]
        if ends:
            token = self._end_id
        request.tokens.append(token)
        request.made += 1
        reason = "stop" if ends else "length" if request.made >= params.max_tokens else None
        if FAULT == "garbage":
            reason = "stop"
        response = Response([token], cached_tokens=request.cached, finish_reason=reason, final=reason is not None)
        if params.logprobs:
            response.logprobs = [{token: Logprob(-0.25 * (token % 5), 1), 7: Logprob(-9.0, 2)}]
        if reason is None:
            request.result.queue.put(response)
        else:
            self._end(request, response)

    def _end(self, request: Request, response: Response) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
            done = request.tokens[:-1] if request.made else []
            if done:
                request.private -= self._cache.store(request.held, done, request.owner, final=True)
            self._cache.leave(request.held, request.private)
        request.result.queue.put(response)

    def _tell_stats(self) -> None:
        size = 64 if FAULT == "block size" else self._cache.block_tokens
        stats = {
            "iter": self._steps,
            "numActiveRequests": len(self._running),
            "numQueuedRequests": len(self._waiting),
            "inflightBatchingStats": {"numPausedRequests": 0, "numGenRequests": len(self._running)},
            "kvCacheStats": {
                "maxNumBlocks": self._cache.blocks,
                "usedNumBlocks": self._cache.used,
                "freeNumBlocks": self._cache.blocks - self._cache.used,
                "tokensPerBlock": size,
            },
        }
        if self.stats is not None and getattr(self.args, "enable_iter_perf_stats", True):
            self.stats.aqueue.put(json.dumps(stats))

    def _dispatch(self) -> None:
        if self.events is not None:
            for event in self._events.take():
                self.events.aqueue.put(json.dumps(event))

    def _tell_truth(self) -> None:
        publish("cache.json", self._cache.truth())


def next_token(tokens: list[int], adapter: str, params: Any) -> int:
    """Depends on all tokens before it, on the adapter, and, when sampled, on the seed."""
    seed = None if params._greedy_decoding else params.seed
    data = repr((tokens, Path(adapter).name, seed)).encode()
    return 100 + int.from_bytes(blake2b(data, digest_size=4).digest(), "little") % 30_000
