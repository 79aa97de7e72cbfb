"""What a work used at an endpoint, and what that costs. Pure."""

from dataclasses import dataclass

from libs.catalogue import Price


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, by the endpoint's own count."""

    input: int = 0
    """Of the prompt, cached ones included."""
    cached: int = 0
    output: int = 0


def cost(usage: Usage, price: Price | None) -> float:
    """In the price's currency; 0 without a price."""
    if price is None:
        return 0.0
    fresh = max(usage.input - usage.cached, 0)
    return (fresh * price.input + usage.cached * price.cached_input + usage.output * price.output) / 1_000_000
