"""Stands for the payment provider, which is on another machine and takes its time."""

import time


def take_payment(amount_cents: int, *, key: str, seconds: float) -> str:
    """Take the money.

    Args:
        amount_cents: How much.
        key: Providers take money once per key, so a charge that is run again has to give the same one.
        seconds: How long it takes.

    Returns:
        The provider's reference.
    """
    time.sleep(seconds)
    return f"{amount_cents} cents, {key}"
