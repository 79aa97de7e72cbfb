"""What a caller is told whose work is refused, and what that says of the pool. Pure."""

from libs.errors import HeadraceError, Overloaded
from services.batcher import promise
from services.batcher.held import Held
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
