"""What both base classes share: the way through the guards, and what is remembered of a guarded run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NoReturn, Protocol

from celery import Celery, Task
from celery.signals import task_postrun

from qx_cache_celery import delivery
from qx_cache_celery.abort import Watched, aborted_when_lost
from qx_cache_celery.advice import Advice
from qx_cache_celery.interrupt import TaskLease
from qx_cache_celery.options import TaskOptions, take_options
from qx_cache_celery.runtime import Runtime, runtime_of
from qx_cache_celery.visibility import VisibilityHeartbeat

Proceed = Callable[[], Any]


class Run:
    """One guarded run: what the guards, ``self.lease`` and ``self.retry`` know of it.

    Args:
        task: The task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, task: "GuardedTask", args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.task, self.args, self.kwargs = task, args, kwargs
        self.request = task.request
        self.options = task.qx_options
        self.lease = TaskLease()
        self.idempotency: Any = None
        self.tx: Any = None
        """The transaction, while the body runs in one."""
        self.began = False
        """True once the body has begun: until then nothing can have been done."""
        self.watched: list[Watched] = []
        """What the body is ended for when it is lost."""
        self.before_retry: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []

    @property
    def runtime(self) -> Runtime:
        """What this process shares."""
        return runtime_of(self.task.app)

    @property
    def id(self) -> str:
        """Task id."""
        return str(self.request.id)

    def end_for_retry(self) -> None:
        """Record the end of this attempt before its retry is published, the innermost guard first."""
        while self.before_retry:
            self.before_retry.pop()()


class Guard(Protocol):
    """Decides whether a run may proceed, and records how it ended."""

    def __init__(self, run: Run) -> None:
        """Look at the run; nothing is sent yet."""

    def around(self, proceed: Proceed) -> Any:
        """Let the run proceed and give its result; or replay, or raise what ends the delivery."""
        ...


class GuardedTask(Task):  # type: ignore[type-arg]  # generic in its stubs only
    """Base of ``IdempotentTask`` and ``SingletonTask``; not to be used by itself.

    Cooperative: it goes on with ``super().__call__``, so other base classes (Django's among them) may stand
    beside it. A direct call, ``apply()`` and eager mode pass through untouched.
    """

    abstract = True
    Request = "qx_cache_celery.steps:GuardedRequest"

    qx_options: ClassVar[TaskOptions]
    qx_tx: ClassVar[Any] = None
    """The option ``tx``, as the class has it."""
    qx_record_guard: ClassVar[Any] = None
    """What makes the guard of a run that is to be recorded: ``Callable[[Run], Guard]``."""
    qx_lock_guard: ClassVar[Any] = None
    """The same, of a run that needs a lock."""

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options, at definition."""
        super().on_bound(app)
        cls.qx_options = take_options(cls)
        app.steps["consumer"].update({Advice, VisibilityHeartbeat})
        task_postrun.connect(_after_run, dispatch_uid="qx_cache_celery.after_run", weak=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, through its guards where a worker delivers it."""
        if not delivery.is_delivery(self.request):
            return super().__call__(*args, **kwargs)
        run = Run(self, args, kwargs)
        run.request.__dict__["qx_run"] = run  # inherited by calls inside the run, which pass through

        def body() -> Any:
            with aborted_when_lost(*run.watched) if run.watched else nullcontext():
                run.began = True
                return super(GuardedTask, self).__call__(*args, **kwargs)

        proceed: Proceed = body
        for guard in (self.qx_lock_guard, self.qx_record_guard):  # the record is the outer one
            if guard is not None:
                proceed = _entered(guard(run), proceed)
        try:
            return proceed()
        except delivery.Skip as why:
            return delivery.skipped(why)
        except delivery.Deferral as why:
            reason = why
        raise delivery.defer(self, run.request, reason)

    def retry(self, *args: Any, **kwargs: Any) -> NoReturn:
        """As ``celery.Task.retry``; the claim and the lock are given back before the retry is published."""
        run = delivery.run_of(self.request)
        if run is not None:
            run.end_for_retry()
        return super().retry(*args, **kwargs)  # type: ignore[misc, no-any-return, unused-ignore]  # throw=False returns

    @property
    def lease(self) -> TaskLease:
        """What this run holds; always valid outside a guarded run."""
        run = delivery.run_of(self.request)
        return run.lease if run is not None else TaskLease()


def _entered(guard: Guard, proceed: Proceed) -> Proceed:
    return lambda: guard.around(proceed)


def _after_run(task: Any = None, state: str | None = None, **_: Any) -> None:
    run = delivery.run_of(task.request) if isinstance(task, GuardedTask) else None
    if run is not None and state == "SUCCESS":
        for step in run.after:
            step()
