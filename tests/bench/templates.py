"""The files in `peers/`: configurations with `@NAME@` where a run fills something in."""

import re
from pathlib import Path

DIRECTORY = Path(__file__).parent / "peers"


def write_template(name, directory, settings):
    """Writes a template with its settings into a directory; returns the file."""
    text = re.sub(r"@([A-Z0-9_]+)@", lambda found: str(settings[found[1]]), (DIRECTORY / name).read_text())
    written = Path(directory) / name
    written.write_text(text)
    return written
