"""`headrace generate`."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from libs.client import Finish, GenerateOptions, HeadraceClient, HeadraceError
from services.console.problem import Problem

ALIAS = "default"
"""The route that a policy has for callers who do not care."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, and how."""

    prompt: str
    system: str
    """Instructions in front of a chat; "" for none."""
    raw: bool
    """The prompt as it is, without a chat around it."""
    model: str | None
    options: GenerateOptions
    session: bool
    """Over the Session stream instead of a stream of its own."""


def generate(target: str, key: str, question: Question, notes: Console) -> None:
    """Streams the answer to stdout; what it took goes to `notes`. Raises Problem."""
    try:
        asyncio.run(_generate(target, key, question, notes))
    except HeadraceError as error:
        raise _problem(error) from error


async def _generate(target: str, key: str, question: Question, notes: Console) -> None:
    async with HeadraceClient(target, api_key=key, multiplex=question.session) as client:
        model = question.model or await _choose(client)
        chat: list[tuple[Literal["system", "user", "assistant"], str]] = []
        if question.system:
            chat.append(("system", question.system))
        chat.append(("user", question.prompt))
        answer = (
            client.generate(model, prompt=question.prompt, options=question.options)
            if question.raw
            else client.generate(model, chat=chat, options=question.options)
        )
        finish: Finish | None = None
        ends_a_line = True
        async for chunk in answer:
            if chunk.waiting:
                notes.print(Text(f"waits: {chunk.waiting}", style="dim"), soft_wrap=True)
            if chunk.text:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
                ends_a_line = chunk.text.endswith("\n")
            finish = chunk.finish or finish
        if not ends_a_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if finish is not None:
            notes.print(Text(summary(finish, answer.request_id), style="dim"), soft_wrap=True)


async def _choose(client: HeadraceClient) -> str:
    """The only model that can answer; with several, or none, the policy's default."""
    ready = [model.name async for model in client.list_models() if model.ready]
    return ready[0] if len(ready) == 1 else ALIAS


def summary(finish: Finish, request_id: str) -> str:
    """What an answer took, in one line."""
    usage, timings = finish.usage, finish.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [
        finish.model,
        f"{usage.prompt_tokens}{cached} → {usage.output_tokens} tokens",
        f"first after {1000 * timings.first_token:.0f} ms",
    ]
    decoding = timings.total - timings.first_token
    if usage.output_tokens > 1 and decoding > 0:
        parts.append(f"{(usage.output_tokens - 1) / decoding:.0f} tokens/s")
    if finish.reason == "length":
        parts.append("cut off at the limit")
    return " · ".join([*parts, request_id])


def _problem(error: HeadraceError) -> Problem:
    details = _violations(error)
    if not details:
        details = [f"{name}: {value}" for name, value in sorted(error.metadata.items())]
    advice = f"again in {error.retry_after:.1f} s" if error.retry_after else ""
    title = error.reason.replace("_", " ").lower()
    message = error.message if not error.violations or not details else ""
    return Problem(": ".join(part for part in (title, message) if part) or "failed", details, advice)


def _violations(error: HeadraceError) -> Sequence[str]:
    return [f"{violation.subject}: {violation.description}" for violation in error.violations]
