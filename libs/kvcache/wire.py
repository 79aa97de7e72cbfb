"""The values as messages of headrace.kvcache.v1, and back."""

from collections.abc import Sequence

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.kvcache.values import (
    Answer,
    BlockEvent,
    CacheInfo,
    CacheState,
    Exactness,
    PrefixMatch,
    Question,
    Reservation,
)


def question_to_proto(question: Question) -> pb.Question:
    """Field for field."""
    return pb.Question(
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
        message.id, message.pool, list(message.block_hashes), message.executor, message.blocks, message.traceparent
    )


def answer_to_proto(question_id: int, answer: Answer) -> pb.Answer:
    """The answer under its question's number."""
    return pb.Answer(
        id=question_id,
        matches=[pb.PrefixMatch(executor=match.executor, blocks=match.blocks) for match in answer.matches],
        reserved=answer.reserved,
        free_blocks=answer.free_blocks,
    )


def answer_from_proto(message: pb.Answer) -> Answer:
    """The answer without its number."""
    matches = [PrefixMatch(match.executor, match.blocks) for match in message.matches]
    return Answer(matches, message.reserved, message.free_blocks)


def reservation_to_proto(reservation: Reservation) -> pb.Reservation:
    """Field for field."""
    return pb.Reservation(
        id=reservation.id, executor=reservation.executor, blocks=reservation.blocks, pool=reservation.pool
    )


def reservation_from_proto(message: pb.Reservation) -> Reservation:
    """Field for field."""
    return Reservation(message.id, message.executor, message.pool, message.blocks)


def event_to_proto(pool: str, event: BlockEvent) -> pb.BlockEvent:
    """The event of a pool."""
    hashes = pb.BlockHashes(hashes=event.hashes)
    if event.kind == "stored":
        return pb.BlockEvent(pool=pool, stored=hashes)
    if event.kind == "removed":
        return pb.BlockEvent(pool=pool, removed=hashes)
    return pb.BlockEvent(pool=pool, cleared=True)


def event_from_proto(message: pb.BlockEvent) -> BlockEvent:
    """The event without its pool. Raises ValueError for one of no known kind."""
    match message.WhichOneof("kind"):
        case "stored":
            return BlockEvent("stored", list(message.stored.hashes))
        case "removed":
            return BlockEvent("removed", list(message.removed.hashes))
        case "cleared":
            return BlockEvent("cleared")
    raise ValueError("a block event without a kind")


def cache_to_proto(info: CacheInfo, hashes: Sequence[int]) -> pb.PoolBlocks:
    """A pool of a snapshot, with some or all of its blocks."""
    return pb.PoolBlocks(
        pool=info.pool,
        capacity=info.capacity,
        block_tokens=info.block_tokens,
        exactness=pb.Exactness.ValueType(info.exactness),
        block_hashes=hashes,
    )


def cache_from_proto(message: pb.PoolBlocks) -> CacheState:
    """A pool of a snapshot. An unknown exactness counts as MODELLED."""
    exact = int(message.exactness) == Exactness.EXACT
    info = CacheInfo(
        message.pool, message.capacity, message.block_tokens, Exactness.EXACT if exact else Exactness.MODELLED
    )
    return CacheState(info, list(message.block_hashes))
