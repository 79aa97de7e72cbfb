"""Starts a child and has it load its model: the same for every engine that lives in one."""

import asyncio
import sys
from collections.abc import Callable, Mapping

import msgspec

from services.executor.child.process import ChildProcess
from services.executor.child.wire import LoadRefused, Ready, decode_down, encode
from services.executor.engine import LoadFailed


async def start_loaded(
    module: str,
    load: msgspec.Struct,
    timeout_s: float,
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    accept: Callable[[Ready], None] = lambda ready: None,
) -> tuple[ChildProcess, Ready]:
    """The child, once its model has passed its self-test. Whatever goes wrong, no child is left.

    Args:
        load: The engine's own first message.
        timeout_s: A child that has not answered after this long has failed.
        python, environment: See ChildProcess.start.
        accept: Looks at the child's word; may raise LoadFailed.

    Raises LoadFailed, and OSError when the interpreter cannot be run.
    """
    child = await ChildProcess.start(module, python=python, environment=environment)
    try:
        child.send(encode(load))
        try:
            async with asyncio.timeout(timeout_s):
                data = await child.receive()
        except TimeoutError:
            raise LoadFailed(f"the engine did not answer within {timeout_s:.0f} s") from None
        if data is None:
            raise LoadFailed(f"the engine's process ended with status {await child.close()} while it loaded")
        answer = decode_down(data)
        if isinstance(answer, LoadRefused):
            raise LoadFailed(answer.reason)
        assert isinstance(answer, Ready)
        accept(answer)
    except BaseException:
        await child.close(kill=True)
        raise
    return child, answer
