"""A process that notes each publish of a task: ``publisher.py NAME [NUMBER]``, or on and on until it is killed."""

import itertools
import sys

from backroom import note
from unique import numbered

name, *number = sys.argv[1:]
for i in range(int(number[0])) if number else itertools.count():
    note("published", id=numbered.delay(f"{name}-{i}").id, order=f"{name}-{i}")
