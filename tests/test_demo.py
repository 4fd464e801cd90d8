"""The demo, from start to end, and stopped in the middle."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

DEMO = [sys.executable, "-m", "qx_cache_celery.demo"]


@pytest.mark.demo
@pytest.mark.timeout(200)
def test_it_shows_the_difference(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    picture = tmp_path / "demo.svg"
    words = [*DEMO, "--json", "--seed", "3", "--picture", str(picture)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert 0 == done.returncode, done.stderr
    assert ["http://www.w3.org/2000/svg"] == re.findall(r'http[^"]*svg', picture.read_text())
    picture.unlink()
    told = json.loads(done.stdout)

    assert told["plain"]["duplicate_effects"] >= 1
    assert (0, 0) == (told["idempotent"]["lost"], told["idempotent"]["duplicate_effects"])
    assert (2, 1) == (told["window"]["plain"], told["window"]["idempotent"])
    assert 0 == told["singleton"]["idempotent"]["overlapping_runs"]
    assert told["singleton"]["idempotent"]["runs"] >= 1
    assert [] == os.listdir(tmp_path)  # noqa: PTH208


@pytest.mark.demo
@pytest.mark.timeout(100)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_in_the_middle_it_leaves_nothing_behind(tmp_path, until, number, code):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as demo:
        next(line for line in demo.stdout if "child killed" in line)
        demo.send_signal(number)
        demo.stdout.read()
    assert code == demo.returncode
    until(lambda: [] == os.listdir(tmp_path))  # noqa: PTH208
    until(lambda: not _processes_with(str(tmp_path)))


GOOD = "order_id,customer,amount,currency\n" + "".join(f"o{n},Ada,{n}.50,EUR\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("amount", "price"), ["line 1: missing column amount"]),
        (GOOD.replace("1.50", "much", 1), ["line 2: amount 'much' is no number"]),
        (GOOD.replace(",2.50", ",-2", 1), ["line 3: amount '-2' must be more than 0"]),
        (
            GOOD.replace("o3", "o1").replace(",4.50", ",NaN"),
            ["line 4: duplicate order_id 'o1', first on line 2", "line 5"],
        ),
        ("order_id,customer,amount,currency\n", ["0 orders"]),
        ("", ["missing column"]),
        (None, ["cannot be read"]),
    ],
)
def test_a_bad_orders_file_is_refused_with_line_numbers(tmp_path, text, said):
    file = tmp_path / "orders.csv"
    if text is not None:
        file.write_text(text)
    done = subprocess.run([*DEMO, "--orders", str(file)], capture_output=True, text=True, check=False)

    assert 2 == done.returncode
    for words in said:
        assert words in done.stderr


def _processes_with(text):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if text in line]
