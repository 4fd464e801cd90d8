"""Publishes the orders that come on standard input: a client of its own, as a web front would be."""

import json
import sys

from qx_cache_celery.demo import app as demo


def main() -> None:
    """Publish each order to the task of this side."""
    task = demo.capture_idempotent if demo.SIDE == "idempotent" else demo.capture_plain
    for order_id, amount in json.load(sys.stdin):
        task.delay(order_id, amount)
        demo.ledger.event("published", demo.SIDE, order_id)


if __name__ == "__main__":
    main()
