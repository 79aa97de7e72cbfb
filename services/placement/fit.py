"""What keeps a model off an executor. Pure."""

from collections.abc import Iterable, Mapping

from libs.catalogue import ModelSpec
from services.placement.values import ExecutorView, Failure, Rules


def misfit(spec: ModelSpec, executor: ExecutorView) -> str:
    """Why an executor could never hold a model, even empty; "" if it could."""
    if spec.engines and executor.engine and executor.engine not in spec.engines:
        return f"its engine is {executor.engine}"
    if executor.labels is not None:
        for label, value in sorted(spec.required_labels.items()):
            if executor.labels.get(label) != value:
                return f"it is not labelled {label}={value}"
    if executor.memory_bytes < spec.copy_bytes:
        return "it is too small"
    return ""


def obstacle(spec: ModelSpec, executor: ExecutorView) -> str:
    """Why a copy cannot stay on an executor; "" if it can."""
    return "it is draining" if executor.draining else misfit(spec, executor)


def backoff_s(failure: Failure, rules: Rules) -> float:
    """How long after a failure its executor is left alone; endless once all tries there are used up."""
    if failure.attempts >= rules.tries:
        return float("inf")
    return float(rules.backoff_s * 2 ** max(failure.attempts - 1, 0))


def barred(failures: Mapping[str, Failure], now: float, rules: Rules) -> set[str] | None:
    """The executors on which a pool is not to be tried now; None means all.

    Args:
        failures: Those of the pool that are not forgotten yet, by executor.
    """
    if len(failures) >= rules.tries:
        return None
    return {executor for executor, failure in failures.items() if now < failure.at + backoff_s(failure, rules)}


def said(failures: Mapping[str, Failure]) -> str:
    """The failures of a pool as half a sentence."""
    newest = max(failures.values(), key=lambda failure: failure.at)
    return f"could not be loaded on {listed(failures)} ({newest.reason or 'no reason given'})"


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names for a sentence, the first few of them."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
