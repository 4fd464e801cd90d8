"""What both base classes share: the way through the guards, and what is remembered of a guarded run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NoReturn, Protocol

from celery import Celery, Task, states
from celery.exceptions import Reject
from celery.signals import task_postrun

from qx_cache import Lease
from qx_cache_celery import delivery, report
from qx_cache_celery.abort import Watched, aborted_when_lost
from qx_cache_celery.advice import Advice
from qx_cache_celery.interrupt import TaskLease
from qx_cache_celery.options import TaskOptions, take_options
from qx_cache_celery.runtime import Runtime, runtime_of
from qx_cache_celery.visibility import VisibilityHeartbeat

Proceed = Callable[[], Any]
_ENDS = (states.SUCCESS, states.FAILURE, states.RETRY, states.IGNORED, states.REJECTED)


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
        self.subject = report.Subject(task, self.id, self.id)
        """What is told about; each guard says it better, the outermost last."""
        self.idempotency: Any = None
        self.tx: Any = None
        """The transaction, while the body runs in one."""
        self.began = False
        """True once the body has begun: until then nothing can have been done."""
        self.claim: Any = None
        """What the task claimed in the queue when it was published."""
        self.lock_place: tuple[str, str] | None = None
        """Namespace and name of the lock that the run needs."""
        self.locked: Callable[[Proceed], Any] | None = None
        """What takes the lock around a transaction, so that it is free only after the commit."""
        self.watched: list[Watched] = []
        """What the body is ended for when it is lost."""
        self.before_retry: list[Callable[[], None]] = []
        self._steps: dict[str, list[Callable[[], None]]] = {}

    @property
    def runtime(self) -> Runtime:
        """What this process shares."""
        return runtime_of(self.task.app)

    @property
    def id(self) -> str:
        """Task id."""
        return str(self.request.id)

    def when_told(self, step: Callable[[], None], *ends: str) -> None:
        """Take this step once Celery has stored that the task ended so, or at all, and dispatched what follows."""
        for end in ends or _ENDS:
            self._steps.setdefault(end, []).append(step)

    def put_off(self) -> None:
        """Nothing has been told: the delivery comes again."""
        self._steps.clear()

    def told(self, state: str | None) -> None:
        """Celery is done with the task."""
        for step in self._steps.pop(state or "", ()):
            step()

    def hold(self, lease: Lease, on_lost: str, doubt_limit: float | None) -> None:
        """The body runs under this lease, and is ended with it where ``on_lost`` says "abort"."""
        self.lease.hold(lease)
        if on_lost == "abort":
            self.watched.append((lease, doubt_limit))

    def let_go(self) -> None:
        """What it held was given back before its body began: it is to begin under another claim."""
        self.lease.let_go()
        self.watched.clear()
        self.before_retry.clear()

    def end_for_retry(self) -> None:
        """Make room for the retry before it is published, the innermost guard first."""
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
    qx_track_started: ClassVar[bool] = False
    """Whether STARTED is to be stored when a body begins; Celery stores it before it is known whether one does."""
    qx_tx: ClassVar[Any] = None
    """The option ``tx``, as the class has it."""
    qx_record_guard: ClassVar[Any] = None
    """What makes the guard of a run that is to be recorded: ``Callable[[Run], Guard]``."""
    qx_lock_guard: ClassVar[Any] = None
    """The same, of a run that needs a lock."""
    qx_queue_guard: ClassVar[Any] = None
    """The same, of a run that may have a claim in the queue."""

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options, at definition."""
        super().on_bound(app)
        cls.qx_options = take_options(cls)
        cls.qx_track_started, cls.track_started = cls.qx_track_started or bool(cls.track_started), False
        app.steps["consumer"].update({Advice, VisibilityHeartbeat})
        task_postrun.connect(_after_run, dispatch_uid="qx_cache_celery.after_run", weak=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, through its guards where a worker delivers it."""
        if not delivery.is_delivery(self.request):
            return super().__call__(*args, **kwargs)
        run = Run(self, args, kwargs)
        run.request.__dict__["qx_run"] = run  # inherited by calls inside the run, which pass through

        def body() -> Any:
            if self.qx_track_started and not delivery.result_is_ignored(self, run.request):
                delivery.tell_started(self, run.request)
            with aborted_when_lost(*run.watched) if run.watched else nullcontext() as stand_down:
                run.began = True
                if stand_down is not None:
                    run.lease.when_told(stand_down)
                return super(GuardedTask, self).__call__(*args, **kwargs)

        proceed: Proceed = body
        guards = [self.qx_lock_guard, self.qx_record_guard, self.qx_queue_guard]  # the last is the outermost
        if None not in {self.qx_lock_guard, self.qx_record_guard, self.qx_options.value(self.app, "tx")}:
            run.locked = guards.pop(0)(run).around
        for guard in guards:
            if guard is not None:
                proceed = _entered(guard(run), proceed)
        try:
            return proceed()
        except delivery.Skip as why:
            return delivery.skipped(why)
        except delivery.Deferral as why:
            run.put_off()
            reason = why
        raise delivery.defer(self, run.request, reason)

    def retry(  # noqa: PLR0917  # as Celery has it
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Exception | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> NoReturn:
        """As ``celery.Task.retry``; the claim and the lock are given back before the retry is published.

        Where the broker takes nothing the delivery is put off, and the run comes again; Celery would drop it.
        """
        run = delivery.run_of(self.request)
        if run is not None:
            limit = self.max_retries if max_retries is None else max_retries
            if limit is None or (self.request.retries or 0) < limit:
                run.end_for_retry()
            options["headers"] = delivery.headers_of_retry(self.request, options.get("headers"))
        try:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)  # type: ignore[misc, no-any-return, unused-ignore]  # throw=False returns
        except Reject as reject:
            if run is None:
                raise
            raise delivery.unpublished(self, reject, run.subject) from reject

    @property
    def lease(self) -> TaskLease:
        """What this run holds; always valid outside a guarded run."""
        run = delivery.run_of(self.request)
        return run.lease if run is not None else TaskLease()


def _entered(guard: Guard, proceed: Proceed) -> Proceed:
    return lambda: guard.around(proceed)


def _after_run(task: Any = None, state: str | None = None, **_: Any) -> None:
    run = delivery.run_of(task.request) if isinstance(task, GuardedTask) else None
    if run is not None:
        run.told(state)
