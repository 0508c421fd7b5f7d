"""``python -m inspector.intake``: unpacks an upload, finds its table and tells what it is (see ``confinement``).

The task: ``file`` is unpacked into ``folder``, or lies there already and is no archive; ``name`` is what the person
calls it. The value: ``path`` of the table in ``folder``, and ``source``, the reader's name in a recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from inspector.intake import Refusal
from inspector.intake.archive import unpack
from inspector.intake.confinement import serve
from inspector.intake.kinds import find_table, guess_source


def take_in(task: dict[str, Any]) -> dict[str, str]:
    """The value for one task. Refusal for anything that is no data set."""
    folder, file, name = Path(task["folder"]), Path(task["file"]), str(task["name"])
    path = file
    if file.parent != folder:
        unpack(file, name, folder, task["bytes"], task["files"])
        path = find_table(folder, name)
    return {"path": path.relative_to(folder).as_posix(), "source": guess_source(path, name)}


if __name__ == "__main__":
    sys.exit(serve(take_in, Refusal))
