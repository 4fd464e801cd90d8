"""What the README says first; its code, figures and links are tried in test_docs.py, with all pages."""

from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_on_the_first_screen(command):
    assert command in "\n".join(README.splitlines()[:45])
