"""What a work waits for that has no copy to run on. Pure."""

from collections.abc import Collection, Iterable, Mapping

from libs.catalogue import model_of
from services.batcher.executors import ExecutorInfo


def gone(pool: str, versions: frozenset[str] | None, infos: Iterable[ExecutorInfo]) -> bool:
    """Whether a pool was withdrawn: it is no version that the catalogue has, and no executor holds it.

    Args:
        versions: The pools of the catalogue; None while it is not known.
    """
    if versions is None or pool in versions:
        return False
    return not any(pool in info.models or pool in info.coming or pool in info.leaving for info in infos)


def why_waiting(pool: str, infos: Mapping[str, ExecutorInfo], away: Collection[str] = ()) -> str:
    """A sentence for the caller; empty when a copy is ready, and only slots or blocks are waited for.

    Args:
        away: Executors that do not answer: a router may know another model, long before their leases end.
    """
    if any(pool in info.models and name not in away for name, info in infos.items()):
        return ""
    model = model_of(pool)
    coming = [f"{model} {info.coming[pool]} on {name}" for name, info in sorted(infos.items()) if pool in info.coming]
    coming += [f"{name}, which has {model}, does not answer" for name in sorted(away) if pool in infos[name].models]
    return "; ".join(coming[:3]) or f"no executor has {model} yet"
