"""Interleaved rounds: everything is measured in turn, again and again, so that whatever else the machine does befalls all.

A figure is the median of its rounds; its spread is half the way from the lowest to the highest. A ratio is of two medians;
its own spread is of the ratios within each round.
"""

import statistics

from . import loadgen
from .cases import RATE
from .tools import log


class Series:
    """The rounds of one server at one case."""

    def __init__(self, runs):
        self.runs = runs

    def values(self, case):
        """Of each round: nanoseconds of a request (its median), or answers a second."""
        if case.show == RATE:
            return [run["throughput"] for run in self.runs]
        return [run["latency_ns"]["p50"] for run in self.runs]

    def figures(self):
        of = lambda pick: statistics.median(pick(run) for run in self.runs)
        rates = [run["throughput"] for run in self.runs]
        return {
            "throughput": of(lambda run: run["throughput"]),
            "lowest": min(rates),
            "highest": max(rates),
            "p50_ns": of(lambda run: run["latency_ns"]["p50"]),
            "p99_ns": of(lambda run: run["latency_ns"]["p99"]),
        }


def measure(stage, cases, rounds, seconds):
    """{case: {label: Series}}."""
    runs = {case: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            # Every other round the other way about.
            for rival in stage.rivals(case)[:: -1 if number % 2 else 1]:
                rival.server.pin({stage.place.second if case.apart else stage.place.first})
                figures = loadgen.load(rival.server, rival.target, case, seconds)
                runs[case].setdefault(rival.label, []).append(figures)
        log(f"round {number + 1} of {rounds}")
    order = [rival.label for rival in stage.all]
    return {case: {label: Series(of[label]) for label in order if label in of} for case, of in runs.items() if of}


def median(values):
    return statistics.median(values)


def spread(values):
    """As a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def ratio(values, others):
    """Of the medians; and the lowest and the highest within a round."""
    within = [value / other for value, other in zip(values, others)]
    return median(values) / median(others), min(within), max(within)
