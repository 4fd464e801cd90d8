"""``python -m qx_cache.testing URL``: does this server, as this client reaches it, keep what the package promises?

The checks are pytest tests, run by both twins in a namespace of their own, of which nothing is left. They take
about half a minute. Options of pytest may follow the URL. The exit status is 0 when all is well.
"""

import os
import sys
from pathlib import Path

_USAGE = "usage: python -m qx_cache.testing URL [pytest options]"


def main(words: list[str]) -> int:
    """Run the suite; the exit status."""
    if not words or words[0].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    import pytest  # noqa: PLC0415  # optional, so on first use

    from qx_cache import testing  # noqa: PLC0415  # imports pytest

    os.environ.update(QX_CACHE_TEST_URL=words[0], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    suite = Path(__file__).with_name("conformance.py")
    own = ["-c", os.devnull, "--rootdir", str(suite.parent), "-o", "python_files=conformance.py"]
    return int(pytest.main([*own, "-p", "no:cacheprovider", *words[1:], str(suite)], plugins=[testing]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
