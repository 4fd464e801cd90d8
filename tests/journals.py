"""A file of JSON lines that processes append to while others read it, and while some are killed."""

import json


def rows_in(path):
    """Its rows so far; none before the file is there.

    What follows the last end of a line is left out: another process may be in the midst of its write.
    """
    text = path.read_text() if path.exists() else ""
    complete, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()]
