"""The requests of a drill, second by second: what its plots are drawn from. Pure."""

from collections.abc import Sequence

from services.console.drill.values import Kind, Second, Sent


def per_second(sent: Sequence[Sent]) -> list[Second]:
    """By when they were sent."""
    groups: dict[int, list[Sent]] = {}
    for each in sent:
        groups.setdefault(int(each.at), []).append(each)
    return [_second(at, groups.get(at, [])) for at in range(max(groups, default=-1) + 1)]


def _second(at: int, sent: Sequence[Sent]) -> Second:
    first = sorted(each.first - each.at for each in sent if each.answered and each.first >= 0)
    return Second(
        at=float(at),
        sent=len(sent),
        answered=sum(each.answered for each in sent),
        refused=sum(each.refused for each in sent),
        failed=sum(bool(each.error) and not each.refused for each in sent),
        first_p50_s=_rank(first, 0.5),
        first_p95_s=_rank(first, 0.95),
        probe_tokens=_mean([each.tokens for each in sent if each.answered and each.kind is Kind.PROBE]),
        spared_tokens=_mean([each.tokens for each in sent if each.answered and each.kind is Kind.SPARED]),
    )


def _rank(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 4) if ordered else None


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
