"""What a caller is told whose work is refused or too late, and what that says of the pool. Pure."""

from libs.errors import DeadlinePassed, HeadraceError, Overloaded
from services.batcher import promise
from services.batcher.held import Held, Place
from services.batcher.pool import Pool


def too_large(pool: Pool, held: Held) -> Overloaded:
    """The error for a work that fits on no executor of its pool."""
    tokens, largest = held.total_tokens, pool.largest
    why = f"prompt and max_tokens together are {tokens} tokens, and no executor's KV cache holds more than {largest}"
    return Overloaded(why, metadata={"tokens": str(tokens), "largest_tokens": str(largest)}, retry_after_s=1.0)


def for_room(pool: Pool, held: Held, error: HeadraceError) -> bool:
    """Whether a work was refused that there is room for when less is asked for: that is saturation."""
    return isinstance(error, Overloaded) and not pool.fits_nowhere(held.total_tokens)


def late(estimate: promise.Estimate, stage: str) -> dict[str, str]:
    """What a caller is told, beside the message, whose deadline cannot be met."""
    return {
        "stage": stage,
        "estimated_first_token_s": f"{estimate.first_token_s:.3f}",
        "estimated_end_s": f"{estimate.end_s:.3f}",
    }


def passed(held: Held, now: float, waiting: str) -> DeadlinePassed:
    """The error for a work whose deadline has passed: where it stood, and how far its answer was.

    Args:
        now: Monotonic seconds.
        waiting: What works of its pool wait for that have no copy to run on; empty where there is one.
    """
    tokens = held.progress.count
    far = {"tokens": str(tokens)}
    if held.streaming and held.executor is not None:
        name = held.executor.name
        said = f"the deadline passed on {name}, after {tokens} tokens of the answer"
        return DeadlinePassed(said, metadata={"stage": "executor", "executor": name, **far})
    waited_s = held.queued_s + (now - held.queued_since if held.place is Place.WAITING else 0.0)
    said = f"the deadline passed after {waited_s:.1f} s in the queue"
    if tokens:
        said += f", with {tokens} tokens of the answer"
    if not waiting:
        return DeadlinePassed(said, metadata={"stage": "queue", **far})
    return DeadlinePassed(f"{said}: {waiting}", metadata={"stage": "queue", "waiting": waiting, **far})
