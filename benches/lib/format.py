"""Figures as text: three significant digits at most, with their unit."""


def rate(value):
    return f"{digits(value / 1e6)} M/s" if value >= 1e6 else f"{digits(value / 1e3)} k/s"


def nanoseconds(value):
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if value < limit * 0.9995:
            return f"{digits(value * 1e3 / limit)} {unit}"
    return f"{digits(value / 1e9)} s"


def seconds(value):
    return nanoseconds(value * 1e9)


def size(value):
    for limit, unit in ((1 << 20, "KiB"), (1 << 30, "MiB")):
        if value < limit:
            return f"{digits(value * 1024 / limit)} {unit}"
    return f"{digits(value / (1 << 30))} GiB"


def count(value):
    """A number of keys, as in 10 M or 1 k."""
    for unit, name in ((1_000_000, " M"), (1_000, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return str(value)


def digits(value):
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def factor(value):
    return f"{value:.2f}" if value < 1.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def spread(share):
    return f"± {100 * share:.0f} %"
