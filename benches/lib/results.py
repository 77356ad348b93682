"""Files of results, replaced as a whole; tables as Markdown; and the lines under a table that say what it holds for."""

import json, os
from pathlib import Path


def table(head, rows):
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def machine(facts):
    return f"{facts['processor']}, {facts['processors']} processors, {facts['memory_gib']} GiB, {facts['kernel']}"


def pinned(facts):
    first, second = facts["pin"]
    if second is None:
        return f"Both ends are on processor {first}."
    return f"The client is on processor {first}, the servers on {first} (one core) or {second} (two cores)."


def write(directory, name, text):
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{name}.new"
    new.write_text(text)
    os.replace(new, directory / name)


def write_json(directory, name, value):
    write(directory, name, json.dumps(value, indent=1) + "\n")


def read_json(directory, name):
    try:
        return json.loads((Path(directory) / name).read_text())
    except FileNotFoundError:
        return None
