"""A batcher that answers every work at once with one token, and the public API in front of nothing, doing the same.

Runs as a process of its own beside a real admission and a real router; `tests.bench.front` starts it. What a request
takes through those two, less what it takes here alone, is what they add.
"""

from collections.abc import Sequence
from typing import Any

from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from libs import process
from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.server import lane_streams
from libs.lane.stage import Lane, Sink
from libs.lane.work import Decision, FinishReason, Outcome, QueueState, Work
from libs.process import MeshProcess
from libs.rpc.server import Service
from libs.runtime import Runtime
from services.router.config import Settings

TOKEN = 65
FINISH = pb.Finish(reason=pb.FINISH_REASON_LENGTH, usage=pb.Usage(prompt_tokens=20, output_tokens=1))


class AtOnce:
    """A Stage, and its lanes."""

    def open(self, sink: Sink) -> Lane:
        """A lane that is ready."""
        sink.on_ready()
        return _Lane(sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """Nothing is decided here."""
        return ()

    async def queues(self) -> Sequence[QueueState]:
        """Nothing waits here."""
        return ()


class _Lane:
    ready = True

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def submit(self, work_id: int, work: Work) -> None:
        frame = Draft()
        frame.add(work_id, len(work.resumed), [TOKEN])
        self._sink.on_frame(Frame.of(frame))
        self._sink.on_outcome(work_id, Outcome(finish=FinishReason.LENGTH, output_tokens=1, executor="stub"))

    def cancel(self, work_id: int) -> None:
        """Everything has ended."""

    def close(self) -> None:
        """Nothing is left."""


class Alone(inference_pb2_grpc.InferenceServiceServicer):
    """The public API, without anything that admission does."""

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # type: ignore[override]
        """One token."""
        await context.write(pb.GenerateResponse(request_id="x", token_ids=[TOKEN], finish=FINISH))

    async def Session(self, _: object, context: Any) -> None:  # type: ignore[override]
        """One token for each."""
        while (message := await context.read()) is not aio.EOF:
            ids = [each.id for each in message.generates]
            ends = [pb.SessionEnd(id=each, request_id="x", finish=FINISH) for each in ids]
            counts = [1] * len(ids)
            await context.write(pb.SessionResponse(ids=ids, counts=counts, token_ids=[TOKEN] * len(ids), ends=ends))


async def run(settings: Settings, runtime: Runtime) -> None:
    """Serves both until it is told to stop."""
    add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    async with MeshProcess("batcher", settings.process, runtime) as mesh:
        alone = Service("headrace.inference.v1.InferenceService", add, Alone())  # type: ignore[abstract]
        await mesh.listen([alone], streams=lane_streams(AtOnce()))
        await mesh.announce_stage()
        await mesh.serve()


if __name__ == "__main__":
    process.main("batcher", Settings, run)
