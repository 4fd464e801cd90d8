"""The pages' blocks of code, and what a page takes for granted: the names that its reader has."""

import ast
import inspect
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from celery import Celery
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from qx_cache_celery import IdempotentTask, SingletonTask

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SHOP = ROOT / "examples" / "shop" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", SHOP, *sorted(DOCS.rglob("*.md"))]
IN_FOLDERS = ("docs/tutorial.md", "docs/how-to/testing-your-tasks.md", "docs/how-to/django.md")
"""Pages whose blocks are files, with commands that are typed beside them."""
_BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str

    def __str__(self):
        return f"{name_of(self.page)}:{self.line}"


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    """The page's blocks of these languages, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        why, indent, language, code = match.groups()
        if language in languages:
            code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
            found.append(Block(page, text[: match.start(4)].count("\n") + 1, language, code, why or ""))
    return found


async def play(block, names):
    """Run a block as it stands; ``await`` is allowed, as in a notebook. Errors point at the page."""
    code = "\n" * (block.line - 1) + block.code
    made = compile(code, str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(made, names)  # noqa: S307  # our own text
    if inspect.iscoroutine(result):
        await result


def commands(block):
    """The commands of a console block, each with the output that the page shows."""
    lines = block.code.splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return [(line, "") for line in lines]
    found = []
    for line in lines:
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, output = found[-1]
            found[-1] = (command, f"{output}{line}\n")
    return found


def script(page):
    """A page whose blocks are files and commands, as one program for bash; and what it is to print."""
    lines, expected = [], []
    for block in blocks(page, "python", "console"):
        if block.not_run:
            continue
        if block.language == "python":
            name, at_its_end = re.match(r"# (\S+\.py)(, at its end)?\n", block.code).groups()
            lines += [
                f"mkdir -p $(dirname {name})",
                f"cat {'>>' if at_its_end else '>'} {name} <<'QX_END'",
                block.code + "QX_END",
            ]
            continue
        for command, output in commands(block):
            lines += [f"echo '@@ {len(expected)}'", command]
            expected.append((f"{name_of(page)}: {command}", output))
    return "\n".join(["set -e", *lines, "echo '@@ end'"]), expected


class Relay:
    """Hands on what is in an outbox; after some rounds its process is to stop."""

    def __init__(self):
        self.fences, self.stopping = [], None

    async def run_once(self, *, fence=0):
        self.fences.append(fence)
        if len(self.fences) == 3 and self.stopping is not None:
            self.stopping.set()


async def place_order(order_id):
    return f"receipt {order_id}"


def charge(order_id, amount):
    return f"charged {amount}"


def send_receipt(order_id):
    """The e-mail after a charge."""


class Shop:
    """A database with payments, as the pages on ``tx=`` have it."""

    def __init__(self, folder):
        class Base(DeclarativeBase):
            pass

        class Payment(Base):
            __tablename__ = "payments"
            id: Mapped[int] = mapped_column(primary_key=True)
            order_id: Mapped[int]
            amount: Mapped[int]

        self.engine = create_engine(f"sqlite:///{folder}/shop.db")
        Base.metadata.create_all(self.engine)
        self.Payment, self.Session = Payment, sessionmaker(self.engine)

    def payments(self):
        with self.Session() as session:
            return session.scalar(select(func.count()).select_from(self.Payment))


class World:
    """What the reader of a page has: a server, an app, a shop; and what is true when the page is over.

    Args:
        url: Of the server, as ``create_client`` takes it.
        broker_url: Of the same, as Celery takes it.
        folder: An empty one.
    """

    def __init__(self, url, broker_url, folder):
        self.app = Celery("shop", broker=broker_url, backend="cache+memory://", set_as_current=False)
        self.app.conf.qx_cache_backend_url = url
        self.django = Celery("django", broker="memory://", set_as_current=False)
        self.shop, self.relay = Shop(folder), Relay()
        self.send_receipt = self.app.task(name="send_receipt", shared=False)(send_receipt)
        self.names = {
            "app": self.app,
            "url": url,
            "settings": SimpleNamespace(cache=SimpleNamespace(url=url)),
            "key": "readme",
            "result": SimpleNamespace(value={"a": 1}),
            "relay": self.relay,
            "place_order": place_order,
            "charge": charge,
            "order_id": 42,
            "IdempotentTask": IdempotentTask,
            "SingletonTask": SingletonTask,
            "timedelta": timedelta,
            "shared_task": partial(self.django.task, shared=False),
            "engine": self.shop.engine,
            "Session": self.shop.Session,
            "Payment": self.shop.Payment,
            "send_receipt": self.send_receipt,
        }

    async def play(self, block):
        """Run a block; one that begins with ``self.`` is the inside of a task's body."""
        self.names["__name__"] = f"line_{block.line}"  # so that each block's tasks have names of their own
        if not block.code.startswith("self."):
            await play(block, self.names)
            return

        @self.app.task(
            base=IdempotentTask, bind=True, tx=self.shop.Session, shared=False, name=f"body-{block.line}"
        )
        def body(task):
            exec(block.code, {**self.names, "self": task})  # noqa: S102  # our own text

        body()

    async def close(self):
        for name in ("redis", "client"):
            if hasattr(made := self.names.get(name), "aclose"):
                await made.aclose()
        self.app.close()
        self.django.close()
        self.shop.engine.dispose()


def readme(world):
    assert world.names["cached"] is None
    assert [0] == world.relay.fences
    assert "receipt 42" == world.names["receipt"]
    assert "charged 5" == world.names["capture"](1, 5)


def transactions(world):
    assert 0 == world.shop.payments()
    after = next(
        task
        for name, task in world.app.tasks.items()
        if name.endswith(".capture") and getattr(task, "qx_tx", None)
    )
    after(1, 5)
    assert 1 == world.shop.payments()


def elect_a_leader(world):
    assert 3 == len(world.relay.fences)
    assert world.relay.fences[0] > 0


AFTER = {
    "README.md": readme,
    "docs/transactions.md": transactions,
    "docs/how-to/elect-a-leader.md": elect_a_leader,
}
"""What is true when a page was played."""
