"""A plain client of the public API for tests: nothing between the test and the stubs."""

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from headrace.operations.v1 import operations_pb2_grpc

BOTH = pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS


@dataclass(slots=True)
class Answer:
    """What came of one request."""

    request_id: str = ""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish: pb.Finish | None = None
    failure: pb.Failure | None = None
    times: list[float] = field(default_factory=list)
    """Of each response with tokens, monotonic seconds."""


class Client:
    """Both services on one channel, with one key."""

    def __init__(self, channel: aio.Channel, key: str) -> None:
        self.metadata = (("authorization", f"Bearer {key}"),)
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)

    async def generate(self, request: pb.GenerateRequest, timeout_s: float = 60, into: Answer | None = None) -> Answer:
        """One Generate call. Raises grpc.aio.AioRpcError."""
        answer = into if into is not None else Answer()
        call = self.inference.Generate(request, metadata=self.metadata, timeout=timeout_s)
        try:
            while (response := await call.read()) is not aio.EOF:
                answer.request_id = answer.request_id or response.request_id
                answer.text += response.text
                answer.token_ids += response.token_ids
                if response.token_ids or response.text:
                    answer.times.append(time.monotonic())
                if response.HasField("finish"):
                    answer.finish = response.finish
            if (code := await call.code()).value[0] != 0:
                raise aio.AioRpcError(
                    code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
                )
        finally:
            call.cancel()
        return answer

    async def session(self, requests: Sequence[pb.GenerateRequest]) -> tuple[list[Answer], list[list[int]]]:
        """All requests on one Session; the answers, and the ids of each message that carried tokens."""
        call = self.inference.Session(metadata=self.metadata, timeout=120)
        answers = [Answer() for _ in requests]
        messages: list[list[int]] = []
        generates = [pb.SessionGenerate(id=i, request=r) for i, r in enumerate(requests)]
        await call.write(pb.SessionRequest(generates=generates))
        await call.done_writing()
        while (response := await call.read()) is not aio.EOF:
            if response.ids:
                messages.append(list(response.ids))
            end = 0
            for index, number in enumerate(response.ids):
                start, end = end, end + response.counts[index]
                answers[number].token_ids += response.token_ids[start:end]
                answers[number].times.append(time.monotonic())
                if response.texts:
                    answers[number].text += response.texts[index]
            for ended in response.ends:
                which = ended.WhichOneof("how")
                setattr(answers[ended.id], which, getattr(ended, which))
                answers[ended.id].request_id = ended.request_id
        return answers, messages


@asynccontextmanager
async def connect(target: str, key: str) -> AsyncIterator[Client]:
    """A client on a channel of its own."""
    async with aio.insecure_channel(target) as channel:
        yield Client(channel, key)


def ask(model: str, prompt: str, max_tokens: int = 32, **fields: Any) -> pb.GenerateRequest:
    """A greedy request for exactly `max_tokens` tokens, text and ids."""
    sampling = pb.Sampling(max_tokens=max_tokens, temperature=0, ignore_end=True)
    return pb.GenerateRequest(model=model, prompt=prompt, sampling=sampling, output_form=BOTH, **fields)


def france(model: str, **fields: Any) -> pb.GenerateRequest:
    """What is the capital of France?"""
    chat = pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, content="What is the capital of France?")])
    return pb.GenerateRequest(
        model=model, chat=chat, sampling=pb.Sampling(temperature=0, max_tokens=32), output_form=BOTH, **fields
    )


def details(error: aio.AioRpcError) -> dict[str, Message]:
    """The google.rpc details of an error, by the name of their message."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    found: dict[str, Message] = {}
    for packed in status.details:
        message = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        assert packed.Unpack(message)
        found[type(message).__name__] = message
    return found


async def metric(port: int, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, read from a service's endpoint; 0 if there is none."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            text: str = response.read().decode()
            return text

    total = 0.0
    for line in (await asyncio.to_thread(read)).splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total
