"""Metrics of the data plane, for `/metrics`."""

from functools import cache

from prometheus_client import Counter

CALLS = Counter(
    "spendgate_calls", "Calls that ended, by endpoint and outcome", ["endpoint", "outcome"]
)
REFUSED_KEYS = Counter("spendgate_refused_keys", "Requests without a usable key")
UNPRICED = Counter("spendgate_unpriced_calls", "Calls whose cost is unknown", ["model"])


@cache
def _calls(endpoint: str, outcome: str) -> Counter:
    return CALLS.labels(endpoint, outcome)


def ended(endpoint: str, outcome: str) -> None:
    """Count a call that ended."""
    _calls(endpoint, outcome).inc()
