"""How the sampling of a work is read, alike for all engines. Pure.

Imports nothing that another environment may lack: the children of engines use it, too.
"""

from hashlib import blake2b

from libs.lane.work import Work

GREEDY_BELOW = 1e-4
"""Temperatures below this mean greedy: logits divided by less overflow, and some engines refuse 0."""


def seed_of(work: Work, drawn: int = 0) -> int:
    """The seed to start from: 64 bits, unsigned.

    It is the request's; else one derived from the request's id, so that a work which is sent again chooses alike.

    Args:
        drawn: Tokens of the answer that are not made again. Without them in the seed the random numbers of the
            first tokens would be drawn again.
    """
    seed = work.sampling.seed
    if seed is None:
        seed = int.from_bytes(blake2b(work.request_id.encode(), digest_size=8).digest())
    return (seed + drawn) % (1 << 64)
