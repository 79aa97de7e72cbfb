"""OpenVINO GenAI's continuous batching behind five verbs: add, step, read, cancel, rebuild. For the child.

What it hides: engine ids are never used twice; the token that ends an answer is not part of it; a handle is
not read after its work was cancelled; statuses that stand for several things.
"""

import re
from dataclasses import dataclass

import numpy as np
import openvino
import openvino_genai as genai

from services.executor.openvino.wire import Load, Submit

RUNNING, FINISHED = genai.GenerationStatus.RUNNING, genai.GenerationStatus.FINISHED
BLOCK_SIZES = (8, 16, 32, 64, 128)
PROBE_TOKENS = 65
"""A prompt of this length takes a different number of blocks of each of BLOCK_SIZES but the last two."""

GRAMMAR_FIELDS = {"json_schema": "json_schema", "regex": "regex", "ebnf": "grammar"}


class LoadError(Exception):
    """The model does not load or does not answer; the text says why."""


@dataclass(slots=True)
class Made:
    """What the engine has made for a work."""

    tokens: list[int]
    log_probs: list[float]
    end: str = ""
    """"stop", "length", "INTERNAL", or "" while it goes on."""


class Pipeline:
    """One loaded model. After an exception from `step` only `rebuild` may be called. Raises LoadError."""

    def __init__(self, settings: Load) -> None:
        self._settings = settings
        self._eos_ids = set(settings.eos_ids)
        self._next_id = 0
        self._handles: dict[int, genai.GenerationHandle] = {}
        self._engine = self._build()
        self.block_tokens = self._ask()
        """Tokens per block, measured."""

    def _build(self) -> genai.ContinuousBatchingPipeline:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = self._settings.blocks
        scheduler.max_num_seqs = self._settings.slots
        scheduler.max_num_batched_tokens = self._settings.step_tokens
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        properties = {"INFERENCE_NUM_THREADS": self._settings.threads} if self._settings.threads else {}
        try:
            return genai.ContinuousBatchingPipeline(self._settings.path, scheduler, "CPU", properties)
        except RuntimeError as error:
            raise LoadError(last_line(error)) from error

    def rebuild(self) -> None:
        """Throws the engine away, with its cache and its works, and builds it again. Raises LoadError."""
        self._handles.clear()
        del self._engine  # before the new one: there may be no memory for two
        self._engine = self._build()

    @property
    def busy(self) -> bool:
        """Whether a step would do something; cancelled works keep it busy for one."""
        return bool(self._engine.has_non_finished_requests())

    def add(self, work: Submit, tokens: list[int], max_new_tokens: int) -> None:
        """Gives a work to the engine. Raises RuntimeError when it refuses; nothing else is harmed then."""
        self._next_id += 1
        prompt = openvino.Tensor(np.array([tokens], np.int64))
        config = self._config(work, max_new_tokens)
        self._handles[work.work_id] = self._engine.add_request(self._next_id, prompt, config)

    def step(self) -> None:
        """Computes up to `step_tokens` tokens: one per work, the rest for prompts. Raises RuntimeError; the
        engine is poisoned then."""
        self._engine.step()

    def read(self, work_id: int) -> Made:
        """What is new for a work. Forgets it when it has ended."""
        handle = self._handles[work_id]
        made = Made([], [])
        while handle.can_read():
            output = handle.read()[0]
            made.tokens += output.generated_ids
            made.log_probs += output.generated_log_probs
            if output.finish_reason == genai.GenerationFinishReason.STOP:
                made.end = "stop"
            elif output.finish_reason == genai.GenerationFinishReason.LENGTH:
                made.end = "length"
        status = handle.get_status()
        if not made.end and status != RUNNING:
            made.end = "length" if status == FINISHED else "INTERNAL"
        if made.end == "stop" and made.tokens and made.tokens[-1] in self._eos_ids:
            made.tokens.pop()
            made.log_probs = made.log_probs[: len(made.tokens)]
        if made.end:
            del self._handles[work_id]
        return made

    def cancel(self, work_id: int) -> None:
        """Drops a work; its blocks are free after the next step."""
        self._handles.pop(work_id).cancel()

    def _config(self, work: Submit, max_new_tokens: int) -> genai.GenerationConfig:
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = max_new_tokens
        config.ignore_eos = work.ignore_end
        if not work.ignore_end and self._eos_ids:
            config.eos_token_id = min(self._eos_ids)
            config.stop_token_ids = self._eos_ids
        if work.temperature > 0:
            config.do_sample = True
            config.temperature = work.temperature
            config.top_p = work.top_p
            if work.top_k:
                config.top_k = work.top_k
            config.rng_seed = work.seed
        config.repetition_penalty = work.repetition_penalty
        config.presence_penalty = work.presence_penalty
        config.frequency_penalty = work.frequency_penalty
        config.logprobs = int(work.log_probs)
        if work.grammar_form:
            config.structured_output_config = grammar_config(work.grammar_form, work.grammar_text)
        return config

    def _ask(self) -> int:
        """The self-test: a prompt longer than any block, of which two tokens are read; returns the measured
        block size."""
        first = max(self._settings.vocabulary // 2, 1)
        prompt = [(first + 7 * n) % self._settings.vocabulary for n in range(PROBE_TOKENS)]
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.ignore_eos = True
        config.max_new_tokens = 2
        config.logprobs = 1
        made: list[int] = []
        used = 0
        try:
            handle = self._engine.add_request(0, openvino.Tensor(np.array([prompt], np.int64)), config)
            while self.busy:
                self.step()
                used = max(used, round(self._engine.get_metrics().cache_usage * self._settings.blocks / 100))
                while handle.can_read():
                    output = handle.read()[0]
                    made += output.generated_ids
                    if not np.isfinite(output.generated_log_probs).all():
                        raise LoadError("the self-test's answer has log-probabilities that are not finite")
        except RuntimeError as error:
            raise LoadError(f"the self-test failed: {last_line(error)}") from error
        if len(made) != 2 or not all(0 <= token < self._settings.vocabulary for token in made):
            raise LoadError(f"the self-test's answer is wrong: {made}")
        fitting = [size for size in BLOCK_SIZES if -(-(PROBE_TOKENS + 1) // size) == used]
        if len(fitting) != 1:
            raise LoadError(f"{PROBE_TOKENS + 1} tokens take {used} blocks: of which size?")
        return fitting[0]


def grammar_config(form: str, text: str) -> genai.StructuredOutputConfig:
    """The engine's configuration for a grammar."""
    config = genai.StructuredOutputConfig()
    setattr(config, GRAMMAR_FIELDS[form], text)
    return config


def last_line(error: Exception) -> str:
    """What an exception of the engine says at its end, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = re.sub(r"^.*?\.(cc|cpp|hpp):\d+:? ", "", text)
    return re.sub(r"^Check failed: \(.*?\) is false: ", "", text)
