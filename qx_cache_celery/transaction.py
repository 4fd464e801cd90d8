"""``self.tx``: the transaction that a task's body is in, and what it stages."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qx_cache_celery.inbox.database import Opened
from qx_cache_celery.inbox.rows import Inbox
from qx_cache_celery.staging import Children


class Transaction:
    """``self.tx``: the transaction of a running task, with what it stages.

    Args:
        opened: The transaction.
        children: What is to be published once it is committed.

    Example:
        ```python
        @app.task(base=IdempotentTask, bind=True, idempotency_key="{order_id}", tx=Session)
        def capture(self, order_id, amount):
            self.tx.session.add(Payment(order_id=order_id, amount=amount))
            self.tx.delay(send_receipt, order_id)
        ```
    """

    def __init__(self, opened: Opened, children: Children) -> None:
        self._opened, self.children = opened, children

    @property
    def session(self) -> Any:
        """SQLAlchemy's session; its ``commit()`` ends a savepoint and nothing else.

        Raises:
            AttributeError: ``tx`` is a Django alias: the ORM is in the transaction as it is.
        """
        return self._opened.session

    def delay(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        """Publish ``task(*args, **kwargs)`` once this transaction is committed, and not if it is rolled back.

        Published at least once; its id is the same each time, so an ``IdempotentTask`` takes effect once.

        Returns:
            Its ``AsyncResult``.
        """
        return self.stage(task.s(*args, **kwargs))

    def stage(self, child: Any) -> Any:
        """As ``delay``, for a signature with options: ``self.tx.stage(task.s(1).set(queue="slow"))``.

        Raises:
            InvalidValueError: It is no signature of one task.
        """
        return self.children.add(child)


@contextmanager
def outside_a_run(task: Any, inbox: Inbox, surrounding: Transaction | None) -> Iterator[None]:
    """A transaction for a call that no worker delivered, with no row: the caller's, or one that ends with it."""
    if surrounding is not None:
        task.push_request(qx_tx=surrounding)
        try:
            yield
        finally:
            task.pop_request()
        return
    with inbox.database.begin() as opened:
        children = Children(task.app, str(uuid.uuid4()))
        task.push_request(qx_tx=Transaction(opened, children))
        try:
            yield
        finally:
            task.pop_request()
        opened.settle()
    staged = children.encoded()
    if staged is not None:
        children.publish(staged)
