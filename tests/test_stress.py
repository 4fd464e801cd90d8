"""The stress run for a few seconds, and that it can fail."""

import subprocess
import sys
from pathlib import Path

from stress import judge

STRESS = Path(__file__).with_name("stress.py")


def test_no_violation_while_processes_are_killed():
    words = [sys.executable, str(STRESS), "--seconds", "5"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


def test_each_kind_of_violation_is_seen():
    assert not any(judge([(1, 1), (2, 2), (5, 4)]).values())
    assert {"same fence": 1, "same value": 1, "fence out of order": 1} == judge([(1, 1), (1, 1), (3, 3)])
    assert 1 == judge([(1, 2), (2, 1)])["fence out of order"]
