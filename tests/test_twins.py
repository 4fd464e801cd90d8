"""The twins are one thing: same public methods, same parameters."""

import inspect

import pytest

import qx_cache


@pytest.mark.parametrize("name", ["Cache", "IdempotencyStore", "DistributedLock", "Publishing"])
def test_the_twins_have_the_same_face(name):
    plain, blocking = (faces(getattr(qx_cache, prefix + name)) for prefix in ("", "Sync"))

    assert plain == blocking


def faces(kind):
    members = {name.replace("__a", "__"): member for name, member in vars(kind).items() if name[0] != "_"}
    members["__init__"] = kind.__init__
    return {
        name: [
            p.replace(annotation=None)
            for p in inspect.signature(member).parameters.values()
            if p.name != "function"
        ]
        for name, member in members.items()
        if callable(member)
    } | {name: "property" for name, member in members.items() if isinstance(member, property)}
