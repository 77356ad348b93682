"""A copy of the tracked files, in which tests/defects/run and tests/mutants/run change the code."""

import shutil, subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def update(tree):
    """Makes `tree` a copy of the tracked files as they are now. Unchanged files keep their times, so
    that cargo does not build them again. Returns their names."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    names = sorted(name for name in files.stdout.split("\0") if name and (ROOT / name).is_file())
    for name in names:
        source, copy = ROOT / name, tree / name
        content = source.read_bytes()
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            shutil.copymode(source, copy)
    tracked = set(names)
    for copy in [path for path in tree.rglob("*") if path.is_file()]:
        if str(copy.relative_to(tree)) not in tracked:
            copy.unlink()
    return names
