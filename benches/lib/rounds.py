"""Interleaved rounds: servers are measured in turn, so that disturbances affect all of them.

A figure is the median of its rounds, and its spread is half the distance from the lowest to the
highest round. A ratio is that of two medians; its range is that of the ratios within each round.
"""

import statistics, time

from . import loadgen
from .cases import THROUGHPUT
from .tools import log


class Series:
    """The rounds of one server in one case."""

    def __init__(self, runs):
        # The figures of `keyward-bench`, one dict a round.
        self.runs = runs

    def values(self, case):
        """The case's metric in each round: the median latency in ns, or answers per second."""
        if case.metric == THROUGHPUT:
            return [run["throughput"] for run in self.runs]
        return [run["latency_ns"]["p50"] for run in self.runs]

    def figures(self):
        rates = [run["throughput"] for run in self.runs]
        return {
            "throughput": median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "p50_ns": median([run["latency_ns"]["p50"] for run in self.runs]),
            "p99_ns": median([run["latency_ns"]["p99"] for run in self.runs]),
        }


def measure(group, cases, rounds, seconds):
    """Measures a ServerGroup. Returns {case: {label: Series}}."""
    runs = {case: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            contenders = group.contenders_for(case)
            # Every other round runs in reverse order.
            for contender in reversed(contenders) if number % 2 else contenders:
                cpu = group.workdir.second_cpu if case.separate_cpus else group.workdir.first_cpu
                contender.server.pin({cpu})
                figures = loadgen.run(contender.server, contender.target, case, seconds)
                runs[case].setdefault(contender.label, []).append(figures)
        log(f"round {number + 1} of {rounds}")
    labels = [contender.label for contender in group.contenders]
    return {
        case: {label: Series(by_label[label]) for label in labels if label in by_label}
        for case, by_label in runs.items()
        if by_label
    }


def elapsed(action):
    """Runs an action and returns the seconds that it took."""
    start = time.monotonic()
    action()
    return time.monotonic() - start


def median(values):
    return statistics.median(values)


def spread(values):
    """Half the range, as a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def ratio(values, reference):
    """(ratio of the medians, lowest ratio within a round, highest ratio within a round)."""
    within_rounds = [value / other for value, other in zip(values, reference)]
    return median(values) / median(reference), min(within_rounds), max(within_rounds)
