"""Real containers that are killed, frozen and cut off: ``make docker``.

The fixtures are those of pytest-celery, whose plugin is left out of all other runs. So are these tests then.
"""

import importlib


def _wanted(config):
    return config.pluginmanager.has_plugin("celery")


def pytest_configure(config):
    if _wanted(config):
        config.pluginmanager.register(importlib.import_module("containers"), "qx-containers")


def pytest_ignore_collect(config):
    return None if _wanted(config) else True


def pytest_report_collectionfinish(config):
    return [] if _wanted(config) else "tests/docker is left out: pytest-celery is not loaded; run make docker"
