"""The figures of one run as a table and as a plot."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TARGETS = {
    "lock, hiredis": 1.28,
    "lock, pure": 1.35,
    "async lock, hiredis": 1.3,
    "claim, hiredis": 1.3,
}


def table(results: Mapping[str, Any]) -> str:
    """Everything, as Markdown."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield "# Results"
    yield ""
    yield f"Measured on {results['when']} on {results['system']} with Python {results['python']}: {versions}."
    yield "How to read them: [README.md](README.md)."
    yield ""
    yield "## With nobody else there"
    for kind, contenders in results["uncontended"].items():
        target = f", target of qx_cache ≤ {TARGETS[kind]}" if kind in TARGETS else ""
        yield ""
        yield f"**{kind}**{target}"
        yield ""
        yield "| | round trips | median µs | times the floor | (10 % to 90 % of rounds) |"
        yield "|---|---|---|---|---|"
        for name, one in contenders.items():
            spread = f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}"
            yield f"| {name} | {one['round_trips']:g} | {one['us']:.0f} | {one['ratio']:.2f} | {spread} |"
    yield ""
    yield "## Nine processes for one lock"
    yield ""
    yield "| | handover p50 ms | p99 | longest wait | overtaken | 8 idle waiters: reads/s | bytes/s | gave up |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, one in results["contention"].items():
        yield (
            f"| {name} | {one['p50_ms']} | {one['p99_ms']} | {one['longest_wait_ms']} "
            f"| {one['overtaken_percent']} % "
            f"| {one['reads_per_second']} | {one['bytes_per_second']} | {one['gave_up']} of 8 |"
        )
    yield ""
    yield "## Many leases in one process, beside a main thread that computes"
    yield ""
    yield "| leases | threads | connections | ms a round | lost | heartbeat, % of a core | latest, ms | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in results["leases"]:
        yield (
            f"| {one['leases']} | {one['threads']} | {one['connections']} | {one['round_ms']} | {one['lost']} "
            f"| {one['heartbeat_cpu_percent']} | {one['lateness_ms']} | {one['seconds']:g} |"
        )
    one = results["waking"]
    yield ""
    yield "## Waiting for a result, and what a record weighs"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| one waiter, from completion to its result, p50 | {one['one_p50_ms']} ms |"
    tasks, clients = (one["tasks_p50_ms"], one["tasks_last_ms"]), (one["p50_ms"], one["last_ms"])
    yield f"| 100 waiting tasks of one client, p50 and the last of 20 rounds | {tasks[0]}, {tasks[1]} ms |"
    yield f"| 100 waiting clients in one process, the same | {clients[0]}, {clients[1]} ms |"
    yield f"| record of a running claim | {one['running_bytes']} B |"
    yield f"| record with a result of 100 B | {one['done_bytes']} B |"
    yield from _throughput(results["throughput"])
    yield from _transactions(results["transactions"])


def _transactions(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## One row inserted by a task, on PostgreSQL {found['server']}, prefork"
    yield ""
    yield "| | statements a task | tasks a second | times its own transaction | (10 % to 90 % of rounds) |"
    yield "|---|---|---|---|---|"
    for name, one in found["kinds"].items():
        low, high = one["ratio_low"], one["ratio_high"]
        yield (
            f"| {name} | {one['statements']:g} | {one['tasks_per_second']} | {one['ratio']:.2f} "
            f"| {low:.2f} to {high:.2f} |"
        )
    yield ""
    yield f"A row of the inbox, with a result of {found['result_bytes']} B: {found['row_bytes']} B."


def _throughput(pools: Mapping[str, Any]) -> Iterator[str]:
    targets = {"prefork": 0.80, "threads": 0.65}
    yield ""
    yield "## No-op tasks through one worker"
    for pool, kinds in pools.items():
        yield ""
        yield f"**{pool}**, target of IdempotentTask ≥ {targets[pool]}"
        yield ""
        yield "| | tasks a second | times plain | (10 % to 90 % of rounds) |"
        yield "|---|---|---|---|"
        for name, one in kinds.items():
            low, high = one["ratio_low"], one["ratio_high"]
            yield f"| {name} | {one['tasks_per_second']} | {one['ratio']:.2f} | {low:.2f} to {high:.2f} |"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Ratios to the floor, and handover, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [kind for kind in results["uncontended"] if kind.endswith("hiredis")]
    figure, axes = plt.subplots(1, len(kinds) + 1, figsize=(4 * (len(kinds) + 1), 3.6), layout="constrained")
    for axis, kind in zip(axes, kinds, strict=False):
        contenders = results["uncontended"][kind]
        names = list(contenders)[1:]
        ratios = [contenders[name]["ratio"] for name in names]
        low = [contenders[name]["ratio"] - contenders[name]["ratio_low"] for name in names]
        high = [contenders[name]["ratio_high"] - contenders[name]["ratio"] for name in names]
        axis.barh(names, ratios, xerr=[low, high], color=_colours(names), ecolor="#444", capsize=3)
        axis.axvline(1, color="#888", linewidth=1)
        axis.set_title(kind)
        axis.set_xlabel("time, as a multiple of the floor")
        axis.invert_yaxis()
    names = list(results["contention"])
    p50 = [results["contention"][name]["p50_ms"] for name in names]
    axes[-1].barh(names, p50, color=_colours(names))
    axes[-1].set_xscale("log")
    axes[-1].set_title("handover, nine processes")
    axes[-1].set_xlabel("median ms (logarithmic), and overtaken")
    for row, name in enumerate(names):
        overtaken = results["contention"][name]["overtaken_percent"]
        axes[-1].annotate(f" {overtaken:g} %", (p50[row], row), va="center")
    axes[-1].margins(x=0.25)
    axes[-1].invert_yaxis()
    figure.savefig(path, dpi=110)


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Table and plot, beside the figures that they were made of."""
    (folder / "results.md").write_text(table(results))
    plot(results, folder / "results.png")


def _colours(names: list[str]) -> list[str]:
    return ["#2a7f62" if name.startswith("qx_cache") else "#9db4c0" for name in names]


if __name__ == "__main__":
    home = Path(__file__).parent
    write(json.loads((home / "results.json").read_text()), home)
