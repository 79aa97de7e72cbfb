"""Loads models onto Triton servers; see services.executor.engine.Engine."""

import asyncio
from pathlib import Path

from tokenizers import Tokenizer as Encoder

from libs.catalogue import ModelSpec
from libs.catalogue.options import Triton
from libs.clock import Clock
from libs.models.source import SourceInvalid
from libs.models.tokenizer_files import tokenizer_files
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Capacity, Exactness, Listener, LoadFailed
from services.executor.stream.prompt import PromptText
from services.executor.triton.blocks import ModelledBlocks
from services.executor.triton.contract import ADAPTER_SLOTS, LORA, Flavor
from services.executor.triton.request import Limits
from services.executor.triton.residence import Residence, Resident, Uses
from services.executor.triton.runner import Patience, TritonRunner
from services.executor.triton.server import TritonServer
from services.executor.triton.source import Speech

Tokens = tuple[Tokenizer, PromptText]


class TritonEngine:
    """Models on Triton servers with tensorrtllm_backend. Each names its server in the catalogue.

    Args:
        cache_dir: Where prepared tokenizers are.
        clock: For deadlines.
        patience: With servers that do not answer.
    """

    def __init__(self, cache_dir: Path, clock: Clock, patience: Patience | None = None) -> None:
        self._cache_dir = cache_dir
        self._clock = clock
        self._patience = patience or Patience()
        self._uses: Uses = Uses()
        self._runners: list[TritonRunner] = []

    async def start(self) -> None:
        """Nothing has to be here: the servers are the models' own."""

    async def load(self, model: ModelSpec, listener: Listener) -> TritonRunner:
        """Has the server load the model, checks that it has the tensors of its flavor, and asks it a question."""
        options = model.triton
        flavor = _flavor(model)
        tokens = await self._tokens(model, flavor)
        try:
            server = TritonServer(
                options.endpoint, options.metrics_endpoint, options.tls_ca_file, self._patience.answer_s
            )
        except OSError as error:
            raise LoadFailed(f"triton.tls_ca_file: {error}") from error
        residence = Residence(server, options, flavor, self._uses)
        try:
            runner = await self._runner(model, flavor, residence, tokens, listener)
        except BaseException:
            await residence.leave()
            await server.close()
            raise
        try:
            await runner.start()
        except BaseException:
            await runner.close()
            raise
        self._runners = [*(other for other in self._runners if not other.closed), runner]
        return runner

    async def close(self) -> None:
        """Closes every runner."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.close() for runner in runners))

    async def _runner(
        self, model: ModelSpec, flavor: Flavor, residence: Residence, tokens: Tokens | None, listener: Listener
    ) -> TritonRunner:
        resident = await residence.settle()
        _check_tokens(resident, flavor, tokens)
        told = await residence.blocks(resident.engine.name)
        block_tokens = told.block_tokens if told is not None else model.block_tokens
        blocks = min(filter(None, (model.blocks, told.capacity if told is not None else 0)), default=0)
        if blocks < 1 or block_tokens < 1 or model.slots < 1:
            raise LoadFailed("slots, blocks and block_tokens must be at least 1; the server's metrics tell no blocks")
        if model.block_tokens not in (0, block_tokens):
            raise LoadFailed(f"the server's blocks have {block_tokens} tokens, the catalogue says {model.block_tokens}")
        options, tokenizer = model.triton, tokens[0] if tokens is not None else None
        speech = Speech(
            flavor=flavor,
            facts=resident.facts,
            engine=resident.engine,
            limits=Limits(
                model.context_tokens,
                tokenizer.vocab_size if tokenizer is not None else 0,
                (ends := _ends(options, flavor, tokenizer)),
                options.pad_id or (ends[0] if ends else None),
            ),
            block_tokens=block_tokens,
            tokenizer=tokenizer,
            prompt_text=tokens[1] if tokens is not None and flavor != "tensorrt_llm" else None,
        )
        adapters = ADAPTER_SLOTS if resident.facts.inputs.keys() >= LORA else 0
        capacity = Capacity(model.slots, blocks, block_tokens, Exactness.MODELLED, adapters)
        modelled = ModelledBlocks(blocks, block_tokens, speech.remembers)
        return TritonRunner(residence, speech, capacity, modelled, listener, self._clock, self._patience)

    async def _tokens(self, model: ModelSpec, flavor: Flavor) -> Tokens | None:
        """The model's tokenizer; None for token ids where the catalogue names none."""
        if flavor == "tensorrt_llm" and not model.tokenizer:
            return None
        try:
            return await asyncio.to_thread(_read_tokens, model.tokenizer_source, self._cache_dir)
        except (SourceInvalid, OSError, ValueError) as error:
            raise LoadFailed(f"the tokenizer {model.tokenizer_source}: {error}") from error


def _read_tokens(source: str, cache_dir: Path) -> Tokens:
    folder = Path(source).expanduser()
    if not (folder / "tokenizer.json").is_file():
        folder = tokenizer_files(source, cache_dir)
    return Tokenizer.load(folder), PromptText(Encoder.from_file(str(folder / "tokenizer.json")))


def _flavor(model: ModelSpec) -> Flavor:
    """Raises LoadFailed with everything that the catalogue lacks."""
    options = model.triton
    lacking = [name for name in ("endpoint", "flavor") if not getattr(options, name)]
    if options.flavor not in ("", "tensorrt_llm") and not model.tokenizer_source:
        lacking.append("tokenizer")
    if lacking or not options.flavor:
        raise LoadFailed(f"the catalogue says nothing of {', '.join(f'triton.{name}' for name in lacking)}")
    return options.flavor


def _ends(options: Triton, flavor: Flavor, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Tokens that end an answer, that of the catalogue first. A server that takes text knows its tokenizer's."""
    known = tokenizer.eos_ids if tokenizer is not None and flavor == "tensorrt_llm" else frozenset[int]()
    first = [options.end_id] if options.end_id else []
    return (*first, *sorted(known - set(first)))


def _check_tokens(resident: Resident, flavor: Flavor, tokens: Tokens | None) -> None:
    """The mesh renders whole prompts: a server that puts tokens around them again would change them."""
    if flavor == "tensorrt_llm" or tokens is None or not tokens[1].adds_tokens:
        return
    if resident.preprocessing is None or resident.preprocessing.flag("add_special_tokens", True):
        raise LoadFailed(
            "the server puts special tokens around every prompt: set the parameter add_special_tokens of its "
            "model preprocessing to false"
        )
