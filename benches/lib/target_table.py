"""The table of targets: each row is the ratio of two things measured in one run, and its bound.

benches/results/targets.json holds the latest run of every row, with its machine and its command, so
that rows can be measured one by one. targets.md is written from it.
"""

from typing import NamedTuple

from . import format, results, rounds

JSON, MARKDOWN = "targets.json", "targets.md"


class Measurement(NamedTuple):
    """What was measured, and its value in each round."""

    label: str
    values: list
    # Formats a value.
    formatter: object

    def text(self):
        return f"{self.formatter(rounds.median(self.values))} {format.spread(rounds.spread(self.values))}"


# A bound that is met if the lowest round is no higher than the reference's highest round.
OVERLAP = ("overlap", None)


class Row(NamedTuple):
    name: str
    measured: Measurement
    reference: Measurement
    # ("<=" or ">=", ratio), or OVERLAP.
    bound: tuple
    note: str = ""

    def ratio(self):
        """(ratio of the medians, lowest ratio within a round, highest ratio within a round)."""
        return rounds.ratio(self.measured.values, self.reference.values)

    def is_met(self):
        if self.bound is OVERLAP:
            return min(self.measured.values) <= max(self.reference.values)
        comparison, limit = self.bound
        ratio = self.ratio()[0]
        return ratio <= limit if comparison == "<=" else ratio >= limit

    def target(self):
        if self.bound is OVERLAP:
            return "overlapping intervals"
        return f"{'≤' if self.bound[0] == '<=' else '≥'} {self.bound[1]:g}"

    def line(self):
        ratio, lowest, highest = self.ratio()
        return (
            f"{self.name}: {self.measured.text()}; {self.reference.label}: {self.reference.text()}; "
            f"ratio {ratio:.2f} ({lowest:.2f} to {highest:.2f}), target {self.target()}: "
            f"{verdict(self.is_met())}"
        )

    def record(self):
        ratio, lowest, highest = self.ratio()
        return {
            "what": self.name,
            "measured": self.measured.text(),
            "against": f"{self.reference.label}: {self.reference.text()}",
            "ratio": ratio,
            "lowest": lowest,
            "highest": highest,
            "target": self.target(),
            "met": self.is_met(),
            "note": self.note,
            "values": [self.measured.values, self.reference.values],
        }


def verdict(met):
    return "met" if met else "NOT MET"


def save(directory, names, name, rows, metadata):
    """Replaces the stored rows of one sub-command. `names` are all sub-commands in their order."""
    stored = results.read_json(directory, JSON) or {}
    stored[name] = {**metadata, "rows": [row.record() for row in rows]}
    stored = {name: stored[name] for name in names if name in stored}
    results.write_json(directory, JSON, stored)
    results.write(directory, MARKDOWN, markdown(stored))


def markdown(stored):
    rows = [
        [
            row["what"],
            row["measured"],
            row["against"],
            f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
            row["target"],
            verdict(row["met"]) if row["met"] else f"**{verdict(False)}**",
            f"`benches/targets {name}`",
        ]
        for name, group in stored.items()
        for row in group["rows"]
    ]
    head = ["what", "measured", "against, in the same run", "ratio (within a round)", "target", "", "command"]
    lines = [
        results.markdown_table(head, rows),
        "",
        "Medians of interleaved rounds; ± is half the distance from the lowest to the highest round.",
        "",
    ]
    for name, group in stored.items():
        notes = list(dict.fromkeys(row["note"] for row in group["rows"] if row["note"])) + group["notes"]
        lines.append(
            f"* `{name}`: {' '.join(f'{note}.' for note in notes)} {results.describe_machine(group)}, "
            f"{', '.join(group['versions'])}, {group['date']}: `{group['command']}`"
        )
    return "\n".join(lines) + "\n"
