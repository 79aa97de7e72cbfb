"""How requests of a soak reach the mesh: a stream each, or many on a Session. By stubs: nothing is sent again."""

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias

from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from tests.bench.soak.mix import LEFT, OK
from tests.bench.soak.tally import Record

Stub: TypeAlias = "inference_pb2_grpc.InferenceServiceAsyncStub"
PAUSE_S, STOP_S = 0.15, 5.0
"""Of slow readers, and of those that stop for a while."""
LEAVES_AFTER = 20
"""Tokens."""


def reason(details: Sequence[Packed], code: str) -> str:
    """The reason of an error; its code where it has none."""
    for packed in details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            found: str = info.reason.removeprefix("ERROR_REASON_")
            return found
    return f"code {code}"


def reason_of(error: aio.AioRpcError) -> str:
    """The same, of a call."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return reason(status.details, error.code().name)


async def pause(record: Record, paused: bool) -> bool:
    """What a reader does between two messages; returns whether it has stopped for a while already."""
    if record.kind.manner == "slow":
        await asyncio.sleep(PAUSE_S)
    elif record.kind.manner == "stops" and not paused and record.tokens:
        await asyncio.sleep(STOP_S)
        return True
    return paused


async def generate(stub: Stub, key: str, record: Record) -> None:
    """By Generate, to its end."""
    call = stub.Generate(record.request, metadata=(("authorization", f"Bearer {key}"),))
    paused = False
    try:
        while (response := await call.read()) is not aio.EOF:
            assert isinstance(response, pb.GenerateResponse)
            now = time.monotonic()
            if response.token_ids or response.text:
                record.got(max(len(response.token_ids), 1), now)
            record.token_ids += len(response.token_ids)
            record.log_probs += len(response.log_probs)
            record.text.append(response.text)
            if response.HasField("finish"):
                record.finish = response.finish
                record.tokens = response.finish.usage.output_tokens
                record.end(OK, now)
            elif record.kind.manner in ("cancels", "vanishes") and record.tokens >= LEAVES_AFTER:
                record.end(LEFT, now)
                return
            paused = await pause(record, paused)
        if (code := await call.code()) is not StatusCode.OK or not record.ends:
            record.end(f"code {code.name}", time.monotonic(), await call.details() or "no finish")
    except aio.AioRpcError as error:
        record.end(reason_of(error), time.monotonic(), error.details() or "")
    finally:
        call.cancel()


class Carrier:
    """Requests of one tenant on one Session. Owned by whoever is to await `close` or call `vanish`."""

    def __init__(self, stub: Stub, key: str) -> None:
        self._call = stub.Session(metadata=(("authorization", f"Bearer {key}"),))
        self._records: dict[int, tuple[Record, asyncio.Event]] = {}
        self._writing = asyncio.Lock()
        self._paused = False
        self.carried = 0
        self.lost: list[str] = []
        """What came that belongs to none of its requests."""
        self._reader = asyncio.create_task(self._read(), name="session")

    async def ask(self, record: Record) -> None:
        """One request, to its end. A reader that is slow is so for all on this Session: give it one of its own."""
        self.carried += 1
        number, over = self.carried, asyncio.Event()
        self._records[number] = record, over
        generates = [pb.SessionGenerate(id=number, request=record.request)]
        if self._reader.done() or not await self._write(pb.SessionRequest(generates=generates)):
            self._broken(number)
        await over.wait()

    async def close(self) -> str:
        """Half-closes, and waits for the end of the stream; how it ended."""
        async with self._writing:
            try:
                await self._call.done_writing()
            except (aio.AioRpcError, asyncio.InvalidStateError):
                pass  # it has ended by itself; its status says how
        await self._reader
        code = await self._call.code()
        return OK if code is StatusCode.OK else f"code {code.name}"

    async def vanish(self) -> None:
        """Resets the stream, whatever is on it."""
        self._call.cancel()
        await self._reader

    async def _write(self, message: pb.SessionRequest) -> bool:
        async with self._writing:
            try:
                await self._call.write(message)
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return False
        return True

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not aio.EOF:
                assert isinstance(response, pb.SessionResponse)
                await self._take(response, time.monotonic())
        except (aio.AioRpcError, asyncio.CancelledError):
            pass  # the status says why
        for number in [*self._records]:
            self._broken(number)

    async def _take(self, response: pb.SessionResponse, now: float) -> None:
        ids_at = log_probs_at = 0
        for place, (number, count) in enumerate(zip(response.ids, response.counts, strict=True)):
            if (found := self._records.get(number)) is None:
                self.lost.append(f"a Session's tokens for {number}, which is not running")
                continue
            record = found[0]
            record.got(count, now)
            if record.request.output_form != pb.OUTPUT_FORM_TEXT and record.request.output_form:
                record.token_ids += count
                ids_at += count
            if record.request.log_probs:
                record.log_probs += count
                log_probs_at += count
            record.text += response.texts[place : place + 1]
            if record.kind.manner == "cancels" and record.tokens >= LEAVES_AFTER > record.tokens - count:
                await self._write(pb.SessionRequest(cancels=[number]))
            self._paused = await pause(record, self._paused)
        if ids_at != len(response.token_ids) or log_probs_at != len(response.log_probs):
            self.lost.append(f"{len(response.token_ids)} token ids in a message that counts {ids_at}")
        for end in response.ends:
            self._ended(end, now)

    def _ended(self, end: pb.SessionEnd, now: float) -> None:
        if (found := self._records.pop(end.id, None)) is None:
            self.lost.append(f"a Session's end of {end.id}, which is not running")
            return
        record, over = found
        if end.HasField("finish"):
            record.finish = end.finish
            record.tokens = end.finish.usage.output_tokens
            record.end(OK, now)
        else:
            record.end(reason(end.failure.details, str(end.failure.code)), now, end.failure.message)
        over.set()

    def _broken(self, number: int) -> None:
        record, over = self._records.pop(number)
        cancelled = self._call.cancelled()
        record.end(LEFT if cancelled else "the Session ended under it", time.monotonic())
        over.set()
