"""What a program can listen to. A handler that raises harms nothing: Celery logs it.

Each signal of a task is sent in the process that runs it, with ``sender`` the task and these keywords:
``task_id``, ``key`` (idempotency key or lock name) and those named below. Those of beat have ``sender`` the app,
no more keywords than are named, and come from the thread that stands for leader: do not block it.
"""

from celery.utils.dispatch import Signal

task_replayed = Signal(name="task_replayed", providing_args=["task_id", "key", "holder", "age_seconds"])
"""A stored result was returned instead of a run; ``holder`` is the task id that made it."""

task_deferred = Signal(name="task_deferred", providing_args=["task_id", "key", "countdown", "reason"])
"""A copy of the message was published, to be looked at again after ``countdown`` seconds."""

task_taken_over = Signal(name="task_taken_over", providing_args=["task_id", "key", "attempt", "fence"])
"""This run takes over from one that never ended."""

task_interrupted = Signal(name="task_interrupted", providing_args=["task_id", "key", "attempt", "fence", "holder"])
"""A run began and its end is unknown, and the task is not to run again by itself (``on_interrupted``)."""

task_skipped = Signal(name="task_skipped", providing_args=["task_id", "key", "reason", "holder"])
"""The task ended without a run, because another holds its lock."""

task_already_queued = Signal(name="task_already_queued", providing_args=["task_id", "key", "holder", "running"])
"""The task was not published, because the task ``holder`` is queued, or is ``running``; sent by the publisher."""

task_degraded = Signal(name="task_degraded", providing_args=["task_id", "key", "reason"])
"""Redis gave no usable answer; the row in the task's database (``tx=``) decides alone. Count these."""

lease_lost = Signal(name="lease_lost", providing_args=["task_id", "key", "fence", "reason"])
"""A run found that its lease or lock is not its own any more; ``fence`` is its token."""

beat_leader_elected = Signal(name="beat_leader_elected", providing_args=["fence"])
"""This beat leads from now on, under the fence."""

beat_leader_lost = Signal(name="beat_leader_lost", providing_args=["fence", "reason"])
"""This beat leads no more: ``reason`` is ``"handed over"``, ``"lost"`` or ``"doubtful"``."""
