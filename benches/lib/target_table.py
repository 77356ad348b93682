"""The table of targets: each row is a ratio of two things measured in one run, and whether it is what it should be.

benches/results/targets.json keeps every row's latest run, with the machine and the command that it is of, so that rows can be
measured one by one; targets.md is written from it.
"""

from typing import NamedTuple

from . import results, rounds, format

JSON, MARKDOWN = "targets.json", "targets.md"


class Side(NamedTuple):
    """One of the two: what it is, and what was measured of it, round by round."""

    what: str
    values: list
    # Writes one of them.
    unit: object

    def text(self):
        return f"{self.unit(rounds.median(self.values))} {format.percent(rounds.spread(self.values))}"


# In the place of a bound: what is measured is as low, in one round at least, as the other side in one of its own.
OVERLAP = ("overlap", None)


class Row(NamedTuple):
    what: str
    measured: Side
    against: Side
    # "<=" or ">=", and the ratio that is asked for; or OVERLAP.
    bound: tuple
    note: str = ""

    def ratio(self):
        """(of the medians, lowest within a round, highest)."""
        return rounds.ratio(self.measured.values, self.against.values)

    def met(self):
        if self.bound is OVERLAP:
            return min(self.measured.values) <= max(self.against.values)
        sign, limit = self.bound
        ratio = self.ratio()[0]
        return ratio <= limit if sign == "<=" else ratio >= limit

    def target(self):
        if self.bound is OVERLAP:
            return "overlapping intervals"
        return f"{'≤' if self.bound[0] == '<=' else '≥'} {self.bound[1]:g}"

    def line(self):
        ratio, lowest, highest = self.ratio()
        return (
            f"{self.what}: {self.measured.text()}; {self.against.what}: {self.against.text()}; ratio {ratio:.2f} "
            f"({lowest:.2f} to {highest:.2f}), target {self.target()}: {verdict(self.met())}"
        )

    def record(self):
        ratio, lowest, highest = self.ratio()
        return {
            "what": self.what,
            "measured": self.measured.text(),
            "against": f"{self.against.what}: {self.against.text()}",
            "ratio": ratio,
            "lowest": lowest,
            "highest": highest,
            "target": self.target(),
            "met": self.met(),
            "note": self.note,
            "values": [self.measured.values, self.against.values],
        }


def verdict(met):
    return "met" if met else "NOT MET"


def keep(directory, names, name, rows, facts):
    """Puts the rows of one sub-command in the place of its earlier ones; `names` are all, in their order."""
    kept = results.read_json(directory, JSON) or {}
    kept[name] = {**facts, "rows": [row.record() for row in rows]}
    kept = {name: kept[name] for name in names if name in kept}
    results.write_json(directory, JSON, kept)
    results.write(directory, MARKDOWN, markdown(kept))


def markdown(kept):
    lines = [
        [
            row["what"],
            row["measured"],
            row["against"],
            f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
            row["target"],
            verdict(row["met"]) if row["met"] else f"**{verdict(False)}**",
            f"`benches/targets {name}`",
        ]
        for name, group in kept.items()
        for row in group["rows"]
    ]
    text = [
        results.table(
            ["what", "measured", "against, in the same run", "ratio (within a round)", "target", "", "command"],
            lines,
        ),
        "",
        "Medians of interleaved rounds; ± is half the way from the lowest round to the highest.",
        "",
    ]
    for name, group in kept.items():
        notes = list(dict.fromkeys(row["note"] for row in group["rows"] if row["note"])) + group["notes"]
        text.append(
            f"* `{name}`: {' '.join(f'{note}.' for note in notes)} {results.machine(group)}, {', '.join(group['versions'])}, "
            f"{group['date']}: `{group['command']}`"
        )
    return "\n".join(text) + "\n"
