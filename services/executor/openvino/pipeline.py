"""OpenVINO GenAI's continuous batching behind few verbs: add, step, read, cancel, activate, rebuild. For the child.

What it hides: engine ids are never used twice; the token that ends an answer is not part of it; a handle is
not read after its work was cancelled; statuses that stand for several things; how an adapter is made to act.
"""

from dataclasses import dataclass

import numpy as np
import openvino
import openvino_genai as genai

from libs.models.adapter import Adapter
from services.executor.child.fault import last_line
from services.executor.openvino.lora import engine_adapter, uniform
from services.executor.openvino.run import Run
from services.executor.openvino.salts import Salts
from services.executor.openvino.wire import Load, Submit

RUNNING, FINISHED = genai.GenerationStatus.RUNNING, genai.GenerationStatus.FINISHED

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
    """One loaded model. After an exception from `step` or `activate` only `rebuild` may be called.

    The engine has places for adapters only where one was registered that needs them: each place costs time in
    every step, also while no adapter acts. An adapter that needs further places has it built anew. Raises
    LoadError.
    """

    def __init__(self, settings: Load) -> None:
        self.salts = Salts(settings.vocabulary)
        self.active = ""
        """The adapter that acts; "" for none."""
        self._settings = settings
        self._eos_ids = set(settings.eos_ids)
        self._next_id = 0
        self._handles: dict[int, genai.GenerationHandle] = {}
        self._adapters: dict[str, genai.Adapter] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._engine = self._build()

    def _build(self) -> genai.ContinuousBatchingPipeline:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = self._settings.blocks
        scheduler.max_num_seqs = self._settings.slots
        scheduler.max_num_batched_tokens = self._settings.step_tokens
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        properties: dict[str, object] = {}
        if self._settings.threads:
            properties["INFERENCE_NUM_THREADS"] = self._settings.threads
        if self._settings.lookup_tokens:
            properties["prompt_lookup"] = True
        if self._places:
            # In bf16, the default where the CPU has it, 2026.4 computes nonsense, up to NaN, when few tokens follow
            # the change of an adapter, as behind a cached prefix. In f32 it agrees with merged weights to 1e-3.
            properties["INFERENCE_PRECISION_HINT"] = "f32"
            neutral = uniform(self._places, 0.0)
            properties["adapters"] = genai.AdapterConfig([neutral], genai.AdapterConfig.Mode.MODE_DYNAMIC)
        try:
            return genai.ContinuousBatchingPipeline(self._settings.path, scheduler, "CPU", properties)
        except RuntimeError as error:
            raise LoadError(last_line(error)) from error

    def rebuild(self, adapter: str = "") -> None:
        """Throws the engine away, with its cache and its works, and builds it again. Registered adapters stay.

        Args:
            adapter: Acts from then on.

        Raises LoadError.
        """
        self._handles.clear()
        del self._engine  # before the new one: there may be no memory for two
        self._engine = self._build()
        self.active = ""
        try:
            if self._places:
                self._set(None)
            self.activate(adapter)
        except RuntimeError as error:
            raise LoadError(last_line(error)) from error

    @property
    def busy(self) -> bool:
        """Whether a step would do something; cancelled works keep it busy for one."""
        return bool(self._engine.has_non_finished_requests())

    @property
    def used_blocks(self) -> int:
        """As of the last step that computed something."""
        return round(float(self._engine.get_metrics().cache_usage) * self._settings.blocks / 100)

    def add(self, run: Run) -> None:
        """Gives a work to the engine. Raises RuntimeError when it refuses; nothing else is harmed then."""
        tokens = run.tokens if run.unmarked else self.salts.mark(run.tokens, run.work.salt)
        self._handles[run.work.work_id] = self.request(tokens, self._config(run.work, run.remaining, run.seed))

    def request(self, tokens: list[int], config: genai.GenerationConfig) -> "genai.GenerationHandle":
        """Gives tokens to the engine. Raises RuntimeError."""
        self._next_id += 1
        if self._settings.lookup_tokens:
            config.num_assistant_tokens = self._settings.lookup_tokens
            config.max_ngram_size = self._settings.lookup_ngram
        return self._engine.add_request(self._next_id, openvino.Tensor(np.array([tokens], np.int64)), config)

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

    def settle(self) -> None:
        """Lets cancels take effect: computes nothing once all works are cancelled. Raises RuntimeError."""
        while self.busy:
            self.step()

    def holds(self, adapter: str) -> bool:
        """Whether an adapter can be activated; no adapter, "", always can."""
        return not adapter or adapter in self._adapters

    def register(self, name: str, adapter: Adapter) -> bool:
        """Makes an adapter known. True when the engine has to be rebuilt before it can act."""
        self._adapters[name] = engine_adapter(adapter.matrices)
        further = {target: self._settings.places[target] for target in adapter.targets - self._places.keys()}
        self._places |= further
        return bool(further)

    def forget(self, name: str) -> None:
        """Gives an adapter's memory back. It must not be active."""
        self._adapters.pop(name, None)

    def activate(self, name: str) -> None:
        """Has a registered adapter act on all that is computed from now on, "" for none. No work may be in the
        engine. Raises RuntimeError."""
        if name != self.active:
            self._set(self._adapters[name] if name else None)
            self.active = name

    def act_uniformly(self, strength: float) -> None:
        """Has an adapter act on every place that is easy to notice: see `uniform`. Raises RuntimeError."""
        self._set(uniform(self._places, strength))
        self.active = "?"

    def _set(self, adapter: genai.Adapter | None) -> None:
        """The engine sets adapters only in `generate`, before it looks at the prompts. A batch of two in one
        tensor is then refused, and nothing is computed."""
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = 1
        if self._settings.lookup_tokens:
            config.num_assistant_tokens, config.max_ngram_size = 1, 1
        config.adapters = genai.AdapterConfig([adapter] if adapter is not None else [])
        try:
            self._engine.generate([openvino.Tensor(np.zeros((2, 1), np.int64))], [config])
        except RuntimeError as error:
            if "Use multiple tensors" not in str(error):
                raise

    def _config(self, work: Submit, max_new_tokens: int, seed: int) -> genai.GenerationConfig:
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
            config.rng_seed = seed
        config.repetition_penalty = work.repetition_penalty
        config.presence_penalty = work.presence_penalty
        config.frequency_penalty = work.frequency_penalty
        config.logprobs = int(work.log_probs)
        if work.grammar_form:
            config.structured_output_config = grammar_config(work.grammar_form, work.grammar_text)
        return config


def grammar_config(form: str, text: str) -> genai.StructuredOutputConfig:
    """The engine's configuration for a grammar."""
    config = genai.StructuredOutputConfig()
    setattr(config, GRAMMAR_FIELDS[form], text)
    return config
