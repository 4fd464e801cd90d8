"""The example application, started by its one command, and ordered from over HTTP."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from celery import Celery

from qx_cache import SyncDistributedLock, SyncIdempotencyStore, create_sync_client

HOME = Path(__file__).parents[2] / "examples" / "shop"
TEAPOT = {"customer": "Ada", "item": "teapot", "amount_cents": 1250}
FINGERPRINT = '{"customer":"Ada","item":"teapot","amount_cents":1250}'

pytestmark = [pytest.mark.example, pytest.mark.timeout(120)]


def until(condition, what, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    return pytest.fail(f"waited {seconds} s in vain for {what}")


class Shop:
    """What ``python -m shop`` has started."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        url = self._told(r"The shop is open: (\S+)")
        self.redis_url = f"unix://{self._told(r'its Redis: ([^)]+)')}"
        self.web = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def _told(self, pattern):
        def found():
            assert self.process.poll() is None, "".join(self.lines)
            return next((match[1] for line in list(self.lines) if (match := re.search(pattern, line))), None)

        return until(found, pattern, 60)

    def said(self, words):
        return [line for line in list(self.lines) if words in line]

    def order(self, key, order=TEAPOT):
        return self.web.post("/orders", json=order, headers={"Idempotency-Key": key})

    def paid(self, order_id):
        """The order, once it is paid for."""

        def look():
            order = self.web.get(f"/orders/{order_id}").json()
            return order if order["state"] == "paid" else None

        return until(look, f"{order_id} to be paid")

    def rows(self, query, *values):
        database = next(self.folder.glob("shop-*/shop.sqlite"))
        with closing(sqlite3.connect(database, timeout=20)) as db, db:
            return db.execute(query, values).fetchall()

    def forget(self, key):
        """Let Redis lose what the web front knows of a key."""
        with create_sync_client(self.redis_url) as redis:
            assert 1 == redis.delete(*redis.keys(f"shop-web:idem:*{{{key}}}"))

    def sweep(self, order_id):
        """Let the records of its charge be as old as ``sweep_inbox`` deletes them."""
        until(lambda: self.rows("SELECT 1 FROM qx_inbox WHERE key LIKE ?", f"%{order_id}%"), "its row")
        self.rows("DELETE FROM qx_inbox WHERE key LIKE ?", f"%{order_id}%")
        with create_sync_client(self.redis_url) as redis:
            assert redis.delete(*redis.keys(f"*:idem:*{order_id}*"))

    def store_row(self, order_id, placed_at="2026-01-01 00:00:00.000000"):
        """An order as it is when the web front died before it published the charge."""
        row = (order_id, *TEAPOT.values(), "placed", placed_at)
        columns = "id, customer, item, amount_cents, state, placed_at"
        self.rows(f"INSERT INTO orders ({columns}) VALUES (?, ?, ?, ?, ?, ?)", *row)  # noqa: S608

    def publish(self, task, *args, **headers):
        """As anybody else may; its id."""
        with Celery(broker=self.redis_url.replace("unix://", "redis+socket://")) as app:
            return app.send_task(f"shop.tasks.{task}", args, headers=headers).id

    def received(self, key):
        """How many charges the worker has received up to that of one more order, with this key."""
        order_id = self.order(key).json()["id"]
        until(lambda: self.said(f"charging order {order_id}"), "the charge to begin")
        return len([line for line in self.said("Task shop.tasks.charge[") if "received" in line])

    def pids(self):
        """Of everything that was started, the command's own first."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
        family = [self.process.pid]
        for member in family:
            family += [pid for pid, parent in parents if parent == member]
        return family

    def close(self):
        self.web.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self._reader.join()


@contextmanager
def opened(folder, **settings):
    environment = {**os.environ, "TMPDIR": str(folder), **settings}
    with subprocess.Popen(
        [sys.executable, "-m", "shop", "--port", "0"],
        cwd=HOME,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        shop = None
        try:
            shop = Shop(process, folder)
            yield shop
        finally:
            if shop is None:
                process.send_signal(signal.SIGINT)
            else:
                shop.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("shop"), SHOP_REPORT_EVERY_SECONDS="1") as shop:
        yield shop


@pytest.fixture(scope="module")
def slow_shop(tmp_path_factory):
    """Its payment provider takes three seconds; what is not charged after two is published again."""
    settings = {"SHOP_CHARGE_SECONDS": "3", "SHOP_CHARGE_AGAIN_SECONDS": "2"}
    with opened(tmp_path_factory.mktemp("slow"), **settings) as shop:
        yield shop


@pytest.fixture
def key(request):
    return f"key:{request.node.name[:40]}".translate(str.maketrans("[]", "--"))


def test_the_worker_starts_without_a_warning_of_the_package(shop):
    assert shop.said("worker | ")
    assert [] == [line for line in shop.said("worker | ") if "WARNING" in line]


def test_both_parts_that_it_needs_are_well(shop):
    response = shop.web.get("/healthz")

    assert (200, {"redis": "ok", "database": "ok"}) == (response.status_code, response.json())


def test_an_order_is_charged(shop, key):
    response = shop.order(key)
    assert 201 == response.status_code
    assert "Idempotency-Replayed" not in response.headers
    order = shop.paid(response.json()["id"])

    assert f"/orders/{order['id']}" == response.headers["Location"]
    assert TEAPOT == {name: order[name] for name in TEAPOT}
    assert [1250] == [payment["amount_cents"] for payment in order["payments"]]


def test_an_order_that_is_sent_twice_is_placed_and_published_once(shop, key):
    before = shop.received(f"{key}-before")
    first, second = shop.order(key), shop.order(key)
    after = shop.received(f"{key}-after")
    order = shop.paid(first.json()["id"])

    assert "true" == second.headers["Idempotency-Replayed"]
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert 1 == len(order["payments"])
    assert before + 2 == after


def test_a_key_that_comes_with_another_order_is_refused(shop, key):
    order_id = shop.order(key).json()["id"]
    response = shop.order(key, {**TEAPOT, "amount_cents": 1})

    assert 422 == response.status_code
    assert "application/problem+json" == response.headers["Content-Type"]
    assert "with another order" in response.json()["detail"]
    assert 1250 == shop.paid(order_id)["amount_cents"]


def test_a_key_that_redis_has_forgotten_is_known_by_its_order(shop, key):
    first = shop.order(key)
    shop.forget(key)
    again = shop.order(key)
    shop.forget(key)
    other = shop.order(key, {**TEAPOT, "amount_cents": 1})
    right = shop.order(key)
    last = shop.order(f"{key}-and-another")  # what was published before it is charged, or replayed, before it
    shop.paid(last.json()["id"])

    assert (201, 422, 201) == (again.status_code, other.status_code, right.status_code)
    assert "Idempotency-Replayed" not in again.headers
    assert first.content == again.content == right.content
    assert 1 == len(shop.paid(first.json()["id"])["payments"])


def test_an_order_that_is_paid_is_charged_no_more_when_every_record_of_it_is_gone(shop, key):
    first = shop.order(key)
    order_id = first.json()["id"]
    shop.paid(order_id)
    before = shop.received(f"{key}-before")
    shop.forget(key)
    shop.sweep(order_id)
    again = shop.order(key)
    after = shop.received(f"{key}-after")
    published = shop.publish("charge", order_id)
    until(lambda: shop.said(f"{published}] succeeded"), "the charge to end")

    assert (201, first.content) == (again.status_code, again.content)
    assert before + 1 == after
    assert 1 == len(shop.paid(order_id)["payments"])


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "short"}, {"Idempotency-Key": 'no "quotes" inside'}])
def test_an_order_without_a_proper_key_is_refused(shop, headers):
    response = shop.web.post("/orders", json=TEAPOT, headers=headers)

    assert 400 == response.status_code
    assert "application/problem+json" == response.headers["Content-Type"]
    assert "Idempotency-Key" in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**TEAPOT, "amount_cents": 0},
        {**TEAPOT, "amount_cents": 12.5},
        {**TEAPOT, "customer": "Ada\0"},
        {**TEAPOT, "customer": " "},
        {**TEAPOT, "colour": "blue"},
    ],
)
def test_what_is_no_order_is_refused(shop, key, body):
    response = shop.order(key, body)

    assert 422 == response.status_code
    assert "application/problem+json" == response.headers["Content-Type"]
    assert "body." in response.json()["detail"]


def test_requests_at_the_same_time_with_one_key_place_one_order(shop, key):
    together = threading.Barrier(6)

    def order(_):
        together.wait()
        return shop.order(key)

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(order, range(6)))
    order_id = responses[0].json()["id"]

    assert [201] * 6 == [response.status_code for response in responses]
    assert 5 == sum("Idempotency-Replayed" in response.headers for response in responses)
    assert 1 == len({response.content for response in responses})
    assert 1 == len(shop.paid(order_id)["payments"])


def test_a_front_that_died_between_the_row_and_the_charge_is_made_up_for(shop, key):
    made = [sys.executable, "-c", f"from shop.models import order_id; print(order_id({key!r}))"]
    order_id = subprocess.run(made, cwd=HOME, capture_output=True, text=True, check=True).stdout.strip()
    with create_sync_client(shop.redis_url) as redis:
        store = SyncIdempotencyStore(redis, lease_seconds=6, namespace="shop-web")
        store.claim(key, fingerprint=FINGERPRINT)
    shop.store_row(order_id)
    early = shop.order(key)
    placed = until(lambda: (again := shop.order(key)).status_code == 201 and again, "the claim to lapse")

    assert 409 == early.status_code
    assert 1 <= int(early.headers["Retry-After"]) <= 6
    assert order_id == placed.json()["id"]
    assert 1 == len(shop.paid(order_id)["payments"])


def test_the_report_has_the_sum_of_the_day(shop, key):
    shop.paid(shop.order(key).json()["id"])
    payments, total_cents = shop.rows("SELECT count(*), sum(amount_cents) FROM payments")[0]
    wanted = {"payments": payments, "total_cents": total_cents}

    def report():
        response = shop.web.get("/reports/latest")
        return response.json() if response.status_code == 200 else {}

    until(lambda: wanted.items() <= report().items(), f"a report with {wanted}")


def test_an_order_that_does_not_exist_is_not_found(shop):
    response = shop.web.get("/orders/1a527ae5-b52f-51e0-8a23-dab2fc16122d")

    assert 404 == response.status_code
    assert "application/problem+json" == response.headers["Content-Type"]


def test_a_worker_that_is_killed_while_it_charges_has_taken_the_money_once(slow_shop, key):
    order_id = slow_shop.order(key).json()["id"]
    charging = f"charging order {order_id} in process "
    line = until(lambda: slow_shop.said(charging), "the charge to begin")[0]
    os.kill(int(line.rpartition(" ")[2]), signal.SIGKILL)
    order = slow_shop.paid(order_id)

    assert 2 <= len(slow_shop.said(charging))
    assert 1 == len(order["payments"])


def test_an_order_whose_charge_was_never_published_is_charged_all_the_same(slow_shop):
    order_id = "00000000-0000-5000-8000-000000000001"
    slow_shop.store_row(order_id)

    assert 1 == len(slow_shop.paid(order_id)["payments"])


def test_while_redis_hangs_an_order_is_put_off_and_not_held(slow_shop, key):
    server = int(Path(slow_shop.redis_url.removeprefix("unix://")).with_name("server.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        response, health = slow_shop.order(key), slow_shop.web.get("/healthz")
    finally:
        os.kill(server, signal.SIGCONT)

    assert (503, "1") == (response.status_code, response.headers["Retry-After"])
    assert (503, {"redis": "away", "database": "ok"}) == (health.status_code, health.json())
    until(lambda: 201 == slow_shop.order(key).status_code, "the order to be taken", 60)  # a claim may have arrived


def test_while_the_database_is_held_up_an_order_is_put_off_and_then_placed_once(shop, key):
    database = next(shop.folder.glob("shop-*/shop.sqlite"))
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        response = shop.order(key)
        other.execute("ROLLBACK")
    placed = until(lambda: (again := shop.order(key)).status_code == 201 and again, "the order to be taken")

    assert (503, "1") == (response.status_code, response.headers["Retry-After"])
    assert response.elapsed.total_seconds() < 15  # SQLite itself waits for twenty
    assert 1 == len(shop.paid(placed.json()["id"])["payments"])


@pytest.fixture
def front_without_database(tmp_path, qx_redis_url):
    """A web front whose database takes connections, and never says a word."""
    door = tmp_path / "web"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        database_url = f"postgresql+psycopg://shop@127.0.0.1:{mute.getsockname()[1]}/shop"
        environment = {**os.environ, "SHOP_REDIS_URL": qx_redis_url, "SHOP_DATABASE_URL": database_url}
        command = [sys.executable, "-m", "uvicorn", "shop.web:app", "--uds", str(door), "--log-level", "error"]
        with subprocess.Popen(command, cwd=HOME, env=environment) as process:
            try:
                until(door.exists, "the web front")
                transport = httpx.HTTPTransport(uds=str(door), limits=httpx.Limits(max_connections=50))
                with httpx.Client(transport=transport, base_url="http://shop", timeout=20) as client:
                    yield client
            finally:
                process.terminate()


def test_while_the_database_hangs_an_order_is_put_off_however_often_health_is_asked(front_without_database, key):
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(front_without_database.get, "/healthz") for _ in range(50)]
        healths = [question.result() for question in asked]
    response = front_without_database.post("/orders", json=TEAPOT, headers={"Idempotency-Key": key})

    assert [(503, {"redis": "ok", "database": "away"})] * 50 == [(one.status_code, one.json()) for one in healths]
    assert (503, "1") == (response.status_code, response.headers["Retry-After"])


def test_a_report_that_fails_is_made_later_for_the_day_that_it_was_due(slow_shop):
    tick = {"qx_tick": "nightly report 86400.000", "qx_on_conflict": "defer"}
    slow_shop.rows("ALTER TABLE reports RENAME TO reports_away")
    try:
        task_id = slow_shop.publish("nightly_report", **tick)
        until(lambda: slow_shop.said(f"{task_id}] retry"), "the report to fail")
    finally:
        slow_shop.rows("ALTER TABLE reports_away RENAME TO reports")

    until(lambda: slow_shop.rows("SELECT 1 FROM reports WHERE day = '1970-01-01'"), "the report of that day")


KILL = pytest.param(
    signal.SIGKILL, -9, marks=pytest.mark.skipif(sys.platform != "linux", reason="the kernel has to help: Linux")
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), KILL])
def test_when_the_command_ends_nothing_is_left(tmp_path, key, number, code):
    with opened(tmp_path, SHOP_CHARGE_SECONDS="1") as shop:
        order_id = shop.order(key).json()["id"]
        until(lambda: shop.said(f"charging order {order_id}"), "the charge to begin")
        family = shop.pids()
        assert 9 <= len(family)  # the command, two of the server, web, worker and its two, two beats
        shop.process.send_signal(number)
        assert code == shop.process.wait(30)
        until(lambda: not [pid for pid in family if _alive(pid)], "everything to have ended")

    assert (number == signal.SIGKILL) or [] == os.listdir(tmp_path)  # noqa: PTH208


def _alive(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "shop", "--port", str(port)]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)

    assert (2, "") == (done.returncode, done.stdout)
    assert f"port {port} cannot be used" in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_several_containers_may_make_the_tables_at_once(qx_redis_url, database_url):
    environment = {**os.environ, "SHOP_REDIS_URL": qx_redis_url, "SHOP_DATABASE_URL": database_url}
    manner = {
        "cwd": HOME,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    with create_sync_client(qx_redis_url) as redis:
        before = redis.info("clients")["blocked_clients"]
        with SyncDistributedLock(redis, "migrate", ttl_seconds=60, namespace="shop"):
            started = [subprocess.Popen([sys.executable, "-m", "shop.migrate"], **manner) for _ in range(3)]
            until(
                lambda: redis.info("clients")["blocked_clients"] == before + 3, "all of them to wait in line", 60
            )

    assert ["the tables are there\n"] * 3 == [process.communicate()[0] for process in started]
