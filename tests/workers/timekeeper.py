"""An app of jobs for beat; with the setting ``watched_by`` its beat is watched by Sentry or by OpenTelemetry.

Its minutely entry goes by a clock that runs faster than the world's, from ``fast_since`` on.
"""

import sys
import time
from datetime import UTC, datetime

import terms  # noqa: F401  # tells of leaders
from backroom import BROKER, make_app, note
from celery.schedules import crontab

from qx_cache_celery import SingletonTask

app = make_app("timekeeper")
app.conf.redbeat_redis_url = BROKER.replace("redis+socket://", "unix://")
FAST = 20.0


def fast_now():
    since = app.conf.fast_since
    return datetime.fromtimestamp(since + FAST * (time.time() - since), UTC)


if "fast_since" in app.conf:
    app.conf.beat_schedule = {"minutely": {"task": "timekeeper.ticked", "schedule": crontab(nowfun=fast_now)}}


@app.task(bind=True)
def ticked(self):
    """Of a schedule; nothing keeps it from running twice but its tick's id."""
    traced = getattr(self.request, "traceparent", None)
    note("tick", id=self.request.id, tick=self.request.headers["qx_tick"], traced=traced)


@app.task(base=SingletonTask, bind=True, lock_key=[])
def long(self, seconds):
    note("start", id=self.request.id)
    time.sleep(seconds)
    note("end", id=self.request.id)


@app.task(base=SingletonTask, bind=True, lock_key=[], min_hold=2)
def short(self):
    note("start", id=self.request.id)


def watch_by_sentry():
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Recording(Transport):
        def capture_envelope(self, envelope):
            for item in envelope.items:
                if item.type == "check_in":
                    note("check-in", slug=item.payload.json["monitor_slug"], status=item.payload.json["status"])

    integration = CeleryIntegration(monitor_beat_tasks=True)
    sentry_sdk.init(dsn="https://key@localhost/1", transport=Recording, integrations=[integration])


def watch_by_opentelemetry():
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class Recording(SpanExporter):
        def export(self, spans):
            for span in spans:
                note("span", name=span.name, trace=f"{span.context.trace_id:032x}")
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Recording()))
    CeleryInstrumentor().instrument(tracer_provider=provider)


if "beat" in sys.argv:
    {"sentry": watch_by_sentry, "opentelemetry": watch_by_opentelemetry}.get(app.conf.get("watched_by"), int)()
