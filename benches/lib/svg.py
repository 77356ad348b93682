"""Plots as SVG: panels of bars, and panels of curves over a logarithmic axis. Coordinates are pixels; text is 12 high."""

import html, math
from typing import NamedTuple

WIDTH = 880
MARGIN = 16
INK, SOFT, GRID, OURS, LIMIT, OTHERS = "#212529", "#6c757d", "#e9ecef", "#0b7285", "#adb5bd", "#f08c00"

# Of a bar's row, and of what is above and below a panel's rows.
ROW, HEAD, FOOT = 22, 34, 12
# What a bar's label and its figure take beside it.
LABEL, FIGURE = 112, 128

PLOT_HEIGHT, AXIS = 190, 46
# What the numbers beside a curve's panel take.
TICKS = 46


class Bar(NamedTuple):
    label: str
    value: float
    lowest: float
    highest: float
    text: str
    colour: str


class Curve(NamedTuple):
    label: str
    points: list
    colour: str


class Panel(NamedTuple):
    title: str
    # Of a panel of bars.
    bars: list = []
    # Of a panel of curves: curves, what the axes show, and a function that writes a number of the horizontal one.
    curves: list = []
    across: str = ""
    up: str = ""
    name: object = str
    logarithmic: bool = False
    # Marked on the horizontal axis: (where, what).
    marks: list = []


def bars(title, panels, foot):
    """Two panels in a row; in each, the longest bar is as long as there is room."""
    width = (WIDTH - 3 * MARGIN) // 2
    height = HEAD + FOOT + ROW * max(len(panel.bars) for panel in panels)
    out, top = heading(title), 44
    for number, panel in enumerate(panels):
        left, y = MARGIN + (number % 2) * (width + MARGIN), top + (number // 2) * height
        out.append(text(left, y + 18, panel.title, weight=600))
        longest = max(bar.highest for bar in panel.bars)
        room = width - LABEL - FIGURE
        for row, bar in enumerate(panel.bars):
            at = y + HEAD + ROW * row
            length = max(1.0, room * bar.value / longest)
            weight = 600 if bar.colour == OURS else 400
            out.append(text(left + LABEL - 8, at + 12, bar.label, anchor="end", fill=INK, weight=weight))
            out.append(
                f'<rect x="{left + LABEL}" y="{at}" width="{length:.1f}" height="{ROW - 7}" rx="2" fill="{bar.colour}"/>'
            )
            ends = [left + LABEL + room * end / longest for end in (bar.lowest, bar.highest)]
            if ends[1] - ends[0] >= 2:
                out.append(line(ends[0], at + 7.5, ends[1], at + 7.5, INK))
            out.append(text(max(left + LABEL + length, ends[1]) + 6, at + 12, bar.text, fill=INK, weight=weight))
    return finish(out, top + -(-len(panels) // 2) * height + 8, foot)


def curves(title, panels, foot):
    """All panels in a row, with a legend of their own below each title."""
    width = (WIDTH - MARGIN) / len(panels)
    out, top = heading(title), 44
    legend = max(len(panel.curves) for panel in panels) * 16
    for number, panel in enumerate(panels):
        left = MARGIN + width * number
        out.append(text(left, top + 16, panel.title, weight=600))
        for row, curve in enumerate(panel.curves):
            y = top + 34 + 16 * row
            out.append(line(left, y - 4, left + 18, y - 4, curve.colour, 2.5))
            out.append(text(left + 24, y, curve.label, fill=SOFT))
        out += plot(panel, left + TICKS, top + 40 + legend, width - TICKS - MARGIN)
    return finish(out, top + 40 + legend + PLOT_HEIGHT + AXIS, foot)


def plot(panel, left, top, width):
    xs = sorted({x for curve in panel.curves for x, _ in curve.points})
    ys = [y for curve in panel.curves for _, y in curve.points]
    x_of = scale(math.log(xs[0]), math.log(xs[-1]), left, left + width)
    marks = decades(min(ys), max(ys)) if panel.logarithmic else linear(max(ys))
    shape = math.log if panel.logarithmic else float
    y_of = scale(shape(marks[0]), shape(marks[-1]), top + PLOT_HEIGHT, top + 14)
    out = [text(left - TICKS, top + 6, panel.up, fill=SOFT)]
    for mark in marks:
        y = y_of(shape(mark))
        out.append(line(left, y, left + width, y, GRID))
        out.append(
            text(
                left - 6,
                y + 4,
                f"{mark:,.0f}" if mark >= 1 or mark == 0 else f"{mark:g}",
                anchor="end",
                fill=SOFT,
            )
        )
    for where, what in panel.marks:
        if xs[0] <= where <= xs[-1]:
            x = x_of(math.log(where))
            out.append(line(x, top + 14, x, top + PLOT_HEIGHT, SOFT, 1, dashes="3 3"))
            out.append(text(x + 3, top + PLOT_HEIGHT - 5, what, fill=SOFT))
    # As many names as fit.
    room = max(1, int(width // 34))
    shown = xs[:: -(-len(xs) // room)]
    for x in xs:
        out.append(line(x_of(math.log(x)), top + PLOT_HEIGHT, x_of(math.log(x)), top + PLOT_HEIGHT + 4, SOFT))
    out += [
        text(x_of(math.log(x)), top + PLOT_HEIGHT + 17, panel.name(x), anchor="middle", fill=SOFT) for x in shown
    ]
    out.append(text(left + width / 2, top + PLOT_HEIGHT + 36, panel.across, anchor="middle", fill=SOFT))
    for curve in panel.curves:
        points = [(x_of(math.log(x)), y_of(shape(y))) for x, y in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{curve.colour}"/>' for x, y in points]
    return out


def scale(low, high, start, end):
    """From a range of values to one of pixels."""
    span = (high - low) or 1
    return lambda value: start + (value - low) / span * (end - start)


def linear(highest):
    """Round numbers from zero to beyond the highest, some five."""
    step = 10 ** math.floor(math.log10(highest / 4))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * 5 >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def decades(lowest, highest):
    """1, 2, 5, 10 and so on, around a range."""
    steps = [base * 10**power for power in range(-2, 12) for base in (1, 2, 5)]
    first = max((step for step in steps if step <= lowest), default=steps[0])
    last = min(step for step in steps if step >= highest)
    return [step for step in steps if first <= step <= last]


def heading(title):
    return [text(MARGIN, 27, title, weight=600, size=16)]


def finish(out, height, foot):
    for row, words in enumerate(foot):
        out.append(text(MARGIN, height + 16 + 15 * row, words, fill=SOFT, size=11))
    height = round(height + 15 * len(foot) + 14)
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
                'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12">',
                f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
                *out,
                "</svg>",
            ]
        )
        + "\n"
    )


def text(x, y, words, *, anchor="start", fill=INK, weight=400, size=None):
    size = f' font-size="{size}"' if size else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"{size}>'
        f"{html.escape(words)}</text>"
    )


def line(x1, y1, x2, y2, colour, width=1, dashes=None):
    dashes = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'
