"""The metrics of contracts."""

from functools import cache

from libs.telemetry import names
from libs.telemetry.metrics import Metrics


class ContractObserver:
    """Counts. Labels are names of the policy, and "other": bounded sets."""

    def __init__(self, metrics: Metrics) -> None:
        self._running = metrics.gauge(names.ADMISSION_CONVERSATIONS)
        self._ended = cache(metrics.counter(names.ADMISSION_CONTRACTS).labels)
        self._repairs = cache(metrics.counter(names.ADMISSION_REPAIRS).labels)
        self._calls = cache(metrics.counter(names.ADMISSION_TOOL_CALLS).labels)

    def started(self) -> None:
        """An answer began."""
        self._running.inc()

    def ended(self, contract: str, result: str) -> None:
        """An answer ended: "OK", or the reason of its error."""
        self._running.dec()
        self._ended(contract, result).inc()

    def repaired(self, contract: str) -> None:
        """An answer was not valid, and is asked for again."""
        self._repairs(contract).inc()

    def called(self, tool: str, result: str) -> None:
        """A call is over. `tool` is one of the contract's, or "other"."""
        self._calls(tool, result).inc()
