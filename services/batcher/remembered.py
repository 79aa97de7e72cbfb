"""What executors remember of a prompt, by the manager's account and by the batcher's own. Pure."""

from collections.abc import Mapping, Sequence

from libs.kvcache.values import PrefixMatch
from services.batcher.held import NOTHING
from services.batcher.policies.policy import Match


def matches_of(matches: Sequence[PrefixMatch], block_tokens: int) -> Mapping[str, Match]:
    """What executors remember, in tokens."""
    if not matches:
        return NOTHING
    return {
        m.executor: Match(
            (m.blocks - m.host_blocks - m.disk_blocks) * block_tokens,
            m.host_blocks * block_tokens,
            m.disk_blocks * block_tokens,
        )
        for m in matches
    }


def more(matches: Mapping[str, Match], told: Mapping[str, Match]) -> Mapping[str, Match]:
    """What executors remember by the one or the other account."""
    more = {name: match for name, match in told.items() if name not in matches or match.tokens > matches[name].tokens}
    return {**matches, **more} if more else matches
