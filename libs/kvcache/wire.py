"""The values as messages of headrace.kvcache.v1, and back."""

import sys
from collections.abc import Iterator, Sequence

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.kvcache.values import (
    Answer,
    BlockEvent,
    CacheInfo,
    CacheState,
    CacheTier,
    Exactness,
    PrefixMatch,
    Question,
    Reservation,
)


def add_question(request: pb.ConsultRequest, question: Question) -> None:
    """Field for field. What is made in its place need not be copied there."""
    request.questions.add(
        id=question.id,
        pool=question.pool,
        block_hashes=question.block_hashes,
        executor=question.executor,
        blocks=question.blocks,
        traceparent=question.traceparent,
    )


def question_from_proto(message: pb.Question) -> Question:
    """Field for field."""
    return Question(
        message.id, message.pool, message.block_hashes[:], message.executor, message.blocks, message.traceparent
    )


def add_answer(response: pb.ConsultResponse, question_id: int, answer: Answer) -> None:
    """The answer under its question's number."""
    message = response.answers.add(id=question_id, reserved=answer.reserved, free_blocks=answer.free_blocks)
    for match in answer.matches:
        message.matches.add(
            executor=match.executor,
            blocks=match.blocks,
            host_blocks=match.host_blocks,
            disk_blocks=match.disk_blocks,
        )


def answer_from_proto(message: pb.Answer) -> Answer:
    """The answer without its number."""
    matches = [
        PrefixMatch(match.executor, match.blocks, match.host_blocks, match.disk_blocks) for match in message.matches
    ]
    return Answer(matches, message.reserved, message.free_blocks)


def reservation_to_proto(reservation: Reservation) -> pb.Reservation:
    """Field for field."""
    return pb.Reservation(
        id=reservation.id, executor=reservation.executor, blocks=reservation.blocks, pool=reservation.pool
    )


def reservation_from_proto(message: pb.Reservation) -> Reservation:
    """Field for field."""
    return Reservation(message.id, message.executor, message.pool, message.blocks)


def add_release(request: pb.ConsultRequest, question_id: int, found_blocks: int | None) -> None:
    """Field for field; None is absent."""
    request.releases.add(id=question_id, found_blocks=found_blocks)


def found_from_proto(message: pb.Release) -> int | None:
    """What the engine found; None when it does not say."""
    return message.found_blocks if message.HasField("found_blocks") else None


def event_to_proto(pool: str, event: BlockEvent) -> pb.BlockEvent:
    """The event of a pool."""
    if event.kind == "cleared":
        return pb.BlockEvent(pool=pool, cleared=True)
    hashes, tier = pb.BlockHashes(hashes=event.hashes), pb.CacheTier.ValueType(event.tier)
    if event.kind == "stored":
        return pb.BlockEvent(pool=pool, stored=hashes, tier=tier)
    return pb.BlockEvent(pool=pool, removed=hashes, tier=tier)


def event_from_proto(message: pb.BlockEvent) -> BlockEvent:
    """The event without its pool; an unknown tier counts as the device. Raises ValueError for one of no known
    kind."""
    (event,) = events_from_proto(message, sys.maxsize)
    return event


def events_from_proto(message: pb.BlockEvent, size: int) -> Iterator[BlockEvent]:
    """The same in parts of at most `size` blocks."""
    tier = _TIERS.get(message.tier, CacheTier.DEVICE)
    match message.WhichOneof("kind"):
        case "stored":
            for part in _parts(message.stored.hashes, size):
                yield BlockEvent("stored", part, tier)
        case "removed":
            for part in _parts(message.removed.hashes, size):
                yield BlockEvent("removed", part, tier)
        case "cleared":
            yield BlockEvent("cleared")
        case _:
            raise ValueError("a block event without a kind")


def cache_to_proto(state: CacheState) -> pb.PoolBlocks:
    """A pool of a snapshot, with some or all of its blocks."""
    return pb.PoolBlocks(
        pool=state.info.pool,
        capacity=state.info.capacity,
        block_tokens=state.info.block_tokens,
        exactness=pb.Exactness.ValueType(state.info.exactness),
        block_hashes=state.hashes,
        host_hashes=state.host_hashes,
        disk_hashes=state.disk_hashes,
    )


def info_from_proto(message: pb.PoolBlocks) -> CacheInfo:
    """What a pool of a snapshot is, without its blocks. An unknown exactness counts as MODELLED."""
    exact = int(message.exactness) == Exactness.EXACT
    return CacheInfo(
        message.pool, message.capacity, message.block_tokens, Exactness.EXACT if exact else Exactness.MODELLED
    )


def cache_from_proto(message: pb.PoolBlocks) -> CacheState:
    """A pool of a snapshot."""
    return CacheState(info_from_proto(message), message.block_hashes[:], message.host_hashes[:], message.disk_hashes[:])


def stored_from_proto(message: pb.PoolBlocks, size: int) -> Iterator[BlockEvent]:
    """The blocks of a pool of a snapshot, as if they were stored now, in parts of at most `size` blocks."""
    tiers = (message.block_hashes, message.host_hashes, message.disk_hashes)
    for tier, hashes in zip(CacheTier, tiers, strict=True):
        if hashes:
            for part in _parts(hashes, size):
                yield BlockEvent("stored", part, tier)


_TIERS = {int(tier): tier for tier in CacheTier}


def _parts(hashes: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """At least one; lists, since a slice of a repeated field is one, and reads three times as fast as its
    iterator."""
    for start in range(0, max(len(hashes), 1), size):
        yield hashes[start : start + size]
