"""Works, frames and outcomes as messages of headrace.lane.v1, and back."""

from array import array
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from headrace.inference.v1 import inference_pb2
from headrace.lane.v1 import lane_pb2
from libs.lane.frame import COUNT, HASH, LOG_PROB, NUMBER, Frame
from libs.lane.outbox import Message
from libs.lane.work import (
    Asked,
    Decision,
    FinishReason,
    Grammar,
    Note,
    Outcome,
    QueueState,
    Sampling,
    Tier,
    Work,
)
from libs.rpc.status import from_failure, to_failure

ROLES: Mapping["inference_pb2.Role.ValueType", str] = {
    inference_pb2.ROLE_SYSTEM: "system",
    inference_pb2.ROLE_USER: "user",
    inference_pb2.ROLE_ASSISTANT: "assistant",
}
_ROLE_NUMBERS = {role: number for number, role in ROLES.items()}


def work_to_proto(work_id: int, work: Work) -> lane_pb2.Work:
    """The work under its number on a lane."""
    seconds, micros = divmod(round(work.deadline * 1_000_000), 1_000_000)
    message = lane_pb2.Work(
        work_id=work_id,
        request_id=work.request_id,
        tenant=work.tenant,
        tier=cast("inference_pb2.Tier.ValueType", int(work.tier)),
        model=work.model,
        pool=work.pool,
        prompt_token_ids=array("I", work.prompt).tobytes(),
        resumed_token_ids=array("I", work.resumed).tobytes() if work.resumed else b"",
        block_hashes=array("Q", work.block_hashes).tobytes(),
        block_tokens=work.block_tokens,
        sampling=sampling_to_proto(work.sampling),
        grammar=inference_pb2.Grammar(**{work.grammar.form: work.grammar.text}) if work.grammar else None,
        log_probs=work.log_probs,
        traceparent=work.traceparent,
        adapter=work.adapter,
        salt=work.salt,
        chat=chat_to_proto(work.chat) if work.chat else None,
        weight=work.weight,
        asked=_asked_to_proto(work.asked) if work.asked is not None else None,
    )
    deadline = message.deadline  # in place: a Timestamp of its own would be made, and copied
    deadline.seconds, deadline.nanos = seconds, micros * 1000
    return message


def work_from_proto(message: lane_pb2.Work) -> Work:
    """The work without its number. Raises ValueError for what is no run of integers."""
    form = message.grammar.WhichOneof("form") if message.HasField("grammar") else None
    resumed, deadline = message.resumed_token_ids, message.deadline
    return Work(
        request_id=message.request_id,
        tenant=message.tenant,
        tier=Tier(message.tier),
        model=message.model,
        pool=message.pool,
        prompt=np.frombuffer(message.prompt_token_ids, COUNT).tolist(),
        resumed=np.frombuffer(resumed, COUNT).tolist() if resumed else [],
        block_hashes=np.frombuffer(message.block_hashes, HASH).tolist(),
        block_tokens=message.block_tokens,
        sampling=sampling_from_proto(message.sampling),
        grammar=Grammar(form, getattr(message.grammar, form)) if form else None,
        log_probs=message.log_probs,
        deadline=(deadline.seconds * 1_000_000 + deadline.nanos // 1000) / 1e6,
        traceparent=message.traceparent,
        adapter=message.adapter,
        salt=message.salt,
        chat=chat_from_proto(message.chat) if message.HasField("chat") else (),
        weight=message.weight or 1.0,
        asked=_asked_from_proto(message.asked) if message.HasField("asked") else None,
    )


def _asked_to_proto(asked: Asked) -> lane_pb2.Asked:
    return lane_pb2.Asked(
        alias=asked.alias,
        tokens_of=asked.tokens_of,
        chosen=asked.chosen,
        tried=asked.tried,
        tags=asked.tags,
        capabilities=asked.capabilities,
        text=asked.text,
        no_extras=asked.no_extras,
        smaller=asked.smaller,
    )


def _asked_from_proto(message: lane_pb2.Asked) -> Asked:
    return Asked(
        alias=message.alias,
        tokens_of=message.tokens_of,
        chosen=message.chosen,
        tried=tuple(message.tried),
        tags=dict(message.tags),
        capabilities=tuple(message.capabilities),
        text=message.text,
        no_extras=message.no_extras,
        smaller=message.smaller,
    )


def chat_to_proto(chat: Sequence[tuple[str, str]]) -> inference_pb2.Chat:
    """Turns of roles that are not known have none."""
    return inference_pb2.Chat(
        messages=[
            inference_pb2.Message(role=_ROLE_NUMBERS.get(role, inference_pb2.ROLE_UNSPECIFIED), content=content)
            for role, content in chat
        ]
    )


def chat_from_proto(message: inference_pb2.Chat) -> Sequence[tuple[str, str]]:
    """Roles that are not known are empty."""
    return tuple((ROLES.get(turn.role, ""), turn.content) for turn in message.messages)


def note_to_proto(work_id: int, note: Note) -> lane_pb2.Note:
    """The note under the work's number on a lane."""
    return lane_pb2.Note(work_id=work_id, pool=note.pool, waiting=note.waiting, restart=note.restart, tried=note.tried)


def note_from_proto(message: lane_pb2.Note) -> Note:
    """The note without the work's number."""
    return Note(message.pool, message.waiting, message.restart, tuple(message.tried))


def sampling_to_proto(sampling: Sampling) -> inference_pb2.Sampling:
    """Unset stays unset."""
    return inference_pb2.Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        ignore_end=sampling.ignore_end,
    )


def sampling_from_proto(message: inference_pb2.Sampling) -> Sampling:
    """Stop strings stay behind: they are admission's."""
    given = message.HasField
    return Sampling(
        max_tokens=message.max_tokens,
        temperature=message.temperature if given("temperature") else None,
        top_p=message.top_p if given("top_p") else None,
        top_k=message.top_k if given("top_k") else None,
        seed=message.seed if given("seed") else None,
        repetition_penalty=message.repetition_penalty if given("repetition_penalty") else None,
        presence_penalty=message.presence_penalty if given("presence_penalty") else None,
        frequency_penalty=message.frequency_penalty if given("frequency_penalty") else None,
        ignore_end=message.ignore_end,
    )


def frame_to_proto(frame: Frame) -> lane_pb2.Frame:
    """The arrays as they lie in memory."""
    return lane_pb2.Frame(
        work_ids=frame.work_ids.tobytes(),
        offsets=frame.offsets.tobytes(),
        counts=frame.counts.tobytes(),
        token_ids=frame.token_ids.tobytes(),
        log_probs=frame.log_probs.tobytes(),
    )


def frame_from_proto(message: lane_pb2.Frame) -> Frame:
    """The arrays, used as they lie. Raises ValueError when they do not agree."""
    frame = Frame(
        np.frombuffer(message.work_ids, NUMBER),
        np.frombuffer(message.offsets, COUNT),
        np.frombuffer(message.counts, COUNT),
        np.frombuffer(message.token_ids, COUNT),
        np.frombuffer(message.log_probs, LOG_PROB),
    )
    entries, tokens, log_probs = len(frame), len(frame.token_ids), len(frame.log_probs)
    if len(frame.offsets) != entries or len(frame.counts) != entries:
        raise ValueError(f"a frame of {entries} works has {len(frame.offsets)} offsets and {len(frame.counts)} counts")
    if (counted := int(np.add.reduce(frame.counts, dtype=np.int64))) != tokens or log_probs not in (0, tokens):
        raise ValueError(f"a frame of {counted} tokens has {tokens} of them and {log_probs} log-probabilities")
    return frame


def message_to_proto(message: Message) -> lane_pb2.ExchangeResponse:
    """What goes down a lane at once."""
    frame = message.frame
    return lane_pb2.ExchangeResponse(
        frame=None if frame is None else frame_to_proto(frame),
        outcomes=[outcome_to_proto(work_id, outcome) for work_id, outcome in message.outcomes],
        notes=[note_to_proto(work_id, note) for work_id, note in message.notes],
    )


def outcome_to_proto(work_id: int, outcome: Outcome) -> lane_pb2.Outcome:
    """The outcome under its work's number."""
    message = lane_pb2.Outcome(
        work_id=work_id,
        output_tokens=outcome.output_tokens,
        cached_tokens=outcome.cached_tokens,
        queued_us=round(outcome.queued_s * 1e6),
        executor=outcome.executor,
    )
    if outcome.error is not None:
        message.failure.CopyFrom(to_failure(outcome.error))
    elif outcome.finish is not None:
        message.finish_reason = cast("inference_pb2.FinishReason.ValueType", int(outcome.finish))
    return message


def outcome_from_proto(message: lane_pb2.Outcome) -> Outcome:
    """The outcome without the number."""
    failed = message.HasField("failure")
    return Outcome(
        finish=None if failed else FinishReason(message.finish_reason),
        error=from_failure(message.failure) if failed else None,
        output_tokens=message.output_tokens,
        cached_tokens=message.cached_tokens,
        queued_s=message.queued_us / 1e6,
        executor=message.executor,
    )


def decision_to_proto(decision: Decision) -> lane_pb2.Decision:
    """Field for field."""
    return lane_pb2.Decision(stage=decision.stage, choice=decision.choice, reason=decision.reason)


def decision_from_proto(message: lane_pb2.Decision) -> Decision:
    """Field for field."""
    return Decision(message.stage, message.choice, message.reason)


def queue_to_proto(queue: QueueState) -> lane_pb2.Queue:
    """Field for field."""
    return lane_pb2.Queue(
        instance=queue.instance,
        pool=queue.pool,
        tier=cast("inference_pb2.Tier.ValueType", int(queue.tier)),
        waiting=queue.waiting,
        waiting_tokens=queue.waiting_tokens,
        running=queue.running,
        oldest_waiting_ms=queue.oldest_waiting_ms,
    )


def queue_from_proto(message: lane_pb2.Queue) -> QueueState:
    """Field for field."""
    return QueueState(
        message.instance, message.pool, Tier(message.tier), message.waiting, message.waiting_tokens,
        message.running, message.oldest_waiting_ms,
    )  # fmt: skip
