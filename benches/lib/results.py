"""Result files, which are replaced as a whole, and their Markdown."""

import json, os
from pathlib import Path


def markdown_table(head, rows):
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def describe_machine(run):
    return f"{run['processor']}, {run['processors']} processors, {run['memory_gib']} GiB, {run['kernel']}"


def describe_pinning(run):
    first, second = run["pin"]
    if second is None:
        return f"Client and servers run on processor {first}."
    return f"The client runs on processor {first}, the servers on {first} (one core) or {second} (two cores)."


def write(directory, name, text):
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{name}.new"
    new.write_text(text)
    os.replace(new, directory / name)


def write_json(directory, name, value):
    write(directory, name, json.dumps(value, indent=1) + "\n")


def read_json(directory, name):
    """None if there is no such file."""
    try:
        return json.loads((Path(directory) / name).read_text())
    except FileNotFoundError:
        return None
