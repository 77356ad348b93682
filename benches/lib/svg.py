"""Charts as SVG: panels of bars, and of lines over a logarithmic axis. Lengths are in pixels."""

import html, math
from typing import NamedTuple

WIDTH = 880
MARGIN = 16
# Where the panels start, below the title.
TOP = 44
INK, MUTED, GRID = "#212529", "#6c757d", "#e9ecef"
# Colours of keyward, of the echo, and of the other servers.
KEYWARD, ECHO, OTHER = "#0b7285", "#adb5bd", "#f08c00"

# Bar panels: the height of a row, and the space above and below the rows.
ROW_HEIGHT, HEADER_HEIGHT, FOOTER_HEIGHT = 22, 34, 12
# Bar panels: the width of a bar's label and of its figure.
LABEL_WIDTH, FIGURE_WIDTH = 112, 128

# Line panels: the height of the plot and of its x axis, and the width of its y axis.
PLOT_HEIGHT, X_AXIS_HEIGHT, Y_AXIS_WIDTH = 190, 46, 46


class Bar(NamedTuple):
    label: str
    value: float
    lowest: float
    highest: float
    # The figure beside the bar.
    text: str
    colour: str


class BarPanel(NamedTuple):
    title: str
    bars: list


class Line(NamedTuple):
    label: str
    points: list
    colour: str


class LinePanel(NamedTuple):
    title: str
    lines: list
    x_label: str
    y_label: str
    # Formats a value of the horizontal axis.
    x_format: object = str
    logarithmic_y: bool = False
    # (x, label) of vertical marks.
    marks: list = []


def bar_chart(title, panels, notes):
    """Two panels a row. The longest bar of a panel takes the whole width."""
    width = (WIDTH - 3 * MARGIN) // 2
    height = HEADER_HEIGHT + FOOTER_HEIGHT + ROW_HEIGHT * max(len(panel.bars) for panel in panels)
    elements = [chart_title(title)]
    for number, panel in enumerate(panels):
        left, top = MARGIN + (number % 2) * (width + MARGIN), TOP + (number // 2) * height
        elements += bar_panel(panel, left, top, width)
    return document(elements, TOP + -(-len(panels) // 2) * height + 8, notes)


def bar_panel(panel, left, top, width):
    elements = [text(left, top + 18, panel.title, weight=600)]
    longest = max(bar.highest for bar in panel.bars)
    full_length = width - LABEL_WIDTH - FIGURE_WIDTH
    start = left + LABEL_WIDTH
    for row, bar in enumerate(panel.bars):
        y = top + HEADER_HEIGHT + ROW_HEIGHT * row
        length = max(1.0, full_length * bar.value / longest)
        weight = 600 if bar.colour == KEYWARD else 400
        elements.append(text(start - 8, y + 12, bar.label, anchor="end", fill=INK, weight=weight))
        elements.append(
            f'<rect x="{start}" y="{y}" width="{length:.1f}" height="{ROW_HEIGHT - 7}" rx="2" '
            f'fill="{bar.colour}"/>'
        )
        low, high = (start + full_length * value / longest for value in (bar.lowest, bar.highest))
        if high - low >= 2:
            elements.append(line(low, y + 7.5, high, y + 7.5, INK))
        elements.append(text(max(start + length, high) + 6, y + 12, bar.text, fill=INK, weight=weight))
    return elements


def line_chart(title, panels, notes):
    """All panels in one row, each with its legend below its title."""
    width = (WIDTH - MARGIN) / len(panels)
    plot_top = TOP + 40 + 16 * max(len(panel.lines) for panel in panels)
    elements = [chart_title(title)]
    for number, panel in enumerate(panels):
        left = MARGIN + width * number
        elements.append(text(left, TOP + 16, panel.title, weight=600))
        for row, series in enumerate(panel.lines):
            y = TOP + 34 + 16 * row
            elements.append(line(left, y - 4, left + 18, y - 4, series.colour, 2.5))
            elements.append(text(left + 24, y, series.label, fill=MUTED))
        elements += plot(panel, left + Y_AXIS_WIDTH, plot_top, width - Y_AXIS_WIDTH - MARGIN)
    return document(elements, plot_top + PLOT_HEIGHT + X_AXIS_HEIGHT, notes)


def plot(panel, left, top, width):
    bottom = top + PLOT_HEIGHT
    xs = sorted({x for series in panel.lines for x, _ in series.points})
    ys = [y for series in panel.lines for _, y in series.points]
    to_x = scale(math.log(xs[0]), math.log(xs[-1]), left, left + width)
    x_of = lambda x: to_x(math.log(x))
    y_ticks = logarithmic_ticks(min(ys), max(ys)) if panel.logarithmic_y else linear_ticks(max(ys))
    transform = math.log if panel.logarithmic_y else float
    to_y = scale(transform(y_ticks[0]), transform(y_ticks[-1]), bottom, top + 14)
    y_of = lambda y: to_y(transform(y))

    elements = [text(left - Y_AXIS_WIDTH, top + 6, panel.y_label, fill=MUTED)]
    for tick in y_ticks:
        label = f"{tick:,.0f}" if tick >= 1 or tick == 0 else f"{tick:g}"
        elements.append(line(left, y_of(tick), left + width, y_of(tick), GRID))
        elements.append(text(left - 6, y_of(tick) + 4, label, anchor="end", fill=MUTED))
    for x, label in panel.marks:
        if xs[0] <= x <= xs[-1]:
            elements.append(line(x_of(x), top + 14, x_of(x), bottom, MUTED, 1, dashes="3 3"))
            elements.append(text(x_of(x) + 3, bottom - 5, label, fill=MUTED))
    for x in xs:
        elements.append(line(x_of(x), bottom, x_of(x), bottom + 4, MUTED))
    # Only as many labels as fit beside each other.
    labels = max(1, int(width // 34))
    for x in xs[:: -(-len(xs) // labels)]:
        elements.append(text(x_of(x), bottom + 17, panel.x_format(x), anchor="middle", fill=MUTED))
    elements.append(text(left + width / 2, bottom + 36, panel.x_label, anchor="middle", fill=MUTED))
    for series in panel.lines:
        points = [(x_of(x), y_of(y)) for x, y in series.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        elements.append(f'<polyline points="{path}" fill="none" stroke="{series.colour}" stroke-width="2"/>')
        elements += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{series.colour}"/>' for x, y in points]
    return elements


def scale(low, high, start, end):
    """A linear function from the values low..high to the pixels start..end."""
    span = (high - low) or 1
    return lambda value: start + (value - low) / span * (end - start)


def linear_ticks(highest):
    """About five round numbers from zero to at least the highest value."""
    step = 10 ** math.floor(math.log10(highest / 4))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * 5 >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def logarithmic_ticks(lowest, highest):
    """1, 2, 5, 10 and so on, around a range of values."""
    ticks = [base * 10**power for power in range(-2, 12) for base in (1, 2, 5)]
    first = max((tick for tick in ticks if tick <= lowest), default=ticks[0])
    last = min(tick for tick in ticks if tick >= highest)
    return [tick for tick in ticks if first <= tick <= last]


def chart_title(title):
    return text(MARGIN, 27, title, weight=600, size=16)


def document(elements, height, notes):
    """The whole SVG, with a line of text for each note at the bottom."""
    for row, note in enumerate(notes):
        elements.append(text(MARGIN, height + 16 + 15 * row, note, fill=MUTED, size=11))
    height = round(height + 15 * len(notes) + 14)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12">'
    )
    background = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, background, *elements, "</svg>"]) + "\n"


def text(x, y, content, *, anchor="start", fill=INK, weight=400, size=None):
    size = f' font-size="{size}"' if size else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"{size}>'
        f"{html.escape(content)}</text>"
    )


def line(x1, y1, x2, y2, colour, width=1, dashes=None):
    dashes = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dashes}/>'
    )
