"""The rows, by the names that they have in docs/singleton.md."""

import os
import signal
import time

from rivals_stage import A_MOMENT, Case, until


def another_while_one_runs(stage, **how):
    case = Case(stage, "another" + "".join(how), gate=True)
    case.publish()
    case.running()
    case.publish(**how)
    until(lambda: len(stage.journal("start", case.order)) > 1, 2)
    case.open()
    return case.told()


def positional_and_by_keyword(stage):
    return another_while_one_runs(stage, keyword=True)


def published_by_send_task(stage):
    return another_while_one_runs(stage, by_name=True)


def retried_by_itself(stage):
    case = Case(stage, "retry", retry=True)
    case.publish()
    return case.told()


def failed(stage):
    case = Case(stage, "fail", fail=True)
    until(case.publish().ready)
    time.sleep(A_MOMENT)
    case.publish()
    return case.told()


def child_killed_early_acks(stage):
    case = Case(stage, "child", gate=True)
    first = case.publish()
    case.kill_child()
    until(first.ready)
    time.sleep(A_MOMENT)
    case.open()
    case.publish()
    return case.told()


def child_killed(stage, acks):
    case = Case(stage, f"child-{acks}", gate=True)
    case.publish(acks)
    case.kill_child()
    case.running(2)
    case.open()
    return case.told()


def hard_time_limit(stage):
    case = Case(stage, "limit", gate=True)
    until(case.publish(time_limit=1).ready)
    time.sleep(A_MOMENT)
    case.open()
    case.publish()
    return case.told()


def revoked_before_it_starts(stage):
    case = Case(stage, "revoked")
    first = case.publish(countdown=2)
    time.sleep(0.5)
    first.revoke()
    until(first.ready)
    time.sleep(A_MOMENT)
    case.publish()
    return case.told()


def revoked_with_terminate(stage):
    case = Case(stage, "terminated", gate=True)
    first = case.publish()
    case.running()
    first.revoke(terminate=True)
    until(first.ready)
    time.sleep(A_MOMENT)
    case.open()
    case.publish()
    return case.told()


def expired(stage):
    case = Case(stage, "expired")
    until(case.publish(expires=0.5, countdown=1).ready)
    time.sleep(A_MOMENT)
    case.publish()
    return case.told()


def two_equal_members_of_a_chord(stage):
    from celery import chord

    case = Case(stage, "chord", seconds=0.3)
    member = stage.app.TASKS["early"]
    try:
        case.results.append(chord([member.si(case.order), member.si(case.order)])(stage.app.collect.s()))
    except Exception as error:
        case.results.append(error)
    return case.told()


def two_chains_with_the_same_first_task(stage):
    case = Case(stage, "chains", seconds=0.5)
    for number in range(2):
        try:
            case.results.append((stage.app.TASKS["early"].si(case.order) | stage.app.tail.s(number)).delay())
        except Exception as error:
            case.results.append(error)
    told = case.told()
    return f"{told}; {len(stage.journal('tail', case.order))} tails"


SHARED = {
    "another task while one runs": another_while_one_runs,
    "`f(1)`, then `f(x=1)`": positional_and_by_keyword,
    "published by `send_task`, while one runs": published_by_send_task,
    "`self.retry()`": retried_by_itself,
    "failed, then another": failed,
    "child killed, early acks, then another": child_killed_early_acks,
    "child killed, late acks": lambda stage: child_killed(stage, "late"),
    "child killed, `retry_on_worker_lost`": lambda stage: child_killed(stage, "again"),
    "hard time limit, then another": hard_time_limit,
    "revoked before it starts, then another": revoked_before_it_starts,
    "revoked with terminate, then another": revoked_with_terminate,
    "expired, then another": expired,
    "two equal members of a chord": two_equal_members_of_a_chord,
    "two chains with the same first task": two_chains_with_the_same_first_task,
}


def delivered_again_while_it_runs(stage):
    case = Case(stage, "redelivered", gate=True)
    case.publish("late")
    case.running(2)
    case.open()
    return case.told()


def whole_worker_killed(stage):
    case = Case(stage, "killed", gate=True)
    case.publish("late")
    case.running()
    os.killpg(stage.workers[0].pid, signal.SIGKILL)
    stage.start()
    case.running(2)
    case.open()
    return case.told()


APART = {
    "delivered again while it runs": (delivered_again_while_it_runs, 1.0),
    "whole worker killed, late acks": (whole_worker_killed, 2.0),
}
