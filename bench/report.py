"""The report: ratios within rounds, medians over them, targets met or not, and docs/performance.md."""

import datetime as dt
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench import interpreter, machine
from bench.measure import FIRST_BYTE, FIRST_BYTE_PACED, LOW_LOAD, SATURATION, STREAMS, Outcome, Phase, Run, pick

_OURS: Final = "tresor"
_ATTESTED: Final = ("tresor-attested", "tresor-tls")
_BUSY = 0.9  # below this share of its core a gateway was not what limited the figure

_HOW_TO_READ = """\
- **The ratios are the result.** Each is formed within a round, of two windows seconds apart; the table shows the median
  over the rounds, and the spread beside each target. The absolute figures belong to this machine and wander.
- Every target runs on one core, alone: the others are frozen (`SIGSTOP`) while it is measured. The load generator and
  the upstream have the other core; on two cores they share it.
- A figure at saturation says something about a gateway only where *core busy* is near 100 %. Where it is lower, the
  other core was the limit, and the gateway could do more than the table shows. For this reason the load generator runs
  under `SCHED_BATCH` at saturation: otherwise it interrupts the upstream for every event that arrives, and no fast
  gateway is ever saturated.
- *Added* latency is the median (or 99th percentile) through the gateway minus that of the bare upstream in the same
  round. Tresor's includes the flush of the receipt to disk; no other gateway here signs or stores anything.
- Only whole answers count: status 200, all 61 pieces of content, `[DONE]` at the end of a stream, and, from Tresor,
  the id of a receipt. Everything else is an error and is shown.
- 16 paced streams are 3 200 events/s. Where that is more than a gateway's events/s, its time to the first byte is the
  length of its queue.
- Peers run as their documentation advises for production, without database, cache or telemetry. TensorZero's streams
  wait for delayed acknowledgements, because its server leaves Nagle's algorithm on (so does its own binary, by its
  source); that bounds its events/s at few connections."""

_NOT_MEASURED = """\
- TLS with callers, and with upstreams but for the two targets that are made for it: all other hops are plain HTTP.
- More than one core or worker per gateway, more than one machine, networks with delay or loss.
- Long prompts, large answers, tool calls, images; the work a gateway does when a provider fails.
- Peers with their databases, caches, guardrails or telemetry switched on.
- Long runs: growth of memory and store over days, checkpoints of a large store.
- Power failure: the servers are killed at the end, the machine is not."""


@dataclass(frozen=True, slots=True)
class _Metric:
    """One row of the table of ratios."""

    title: str
    more_is_better: bool
    of: Callable[[Run, Outcome], list[float]]  # one value per round


def _figure(phase: Phase, figure: str) -> Callable[[Run, Outcome], list[float]]:
    return lambda _run, outcome: pick(outcome, phase, figure)


def _added(figure: str) -> Callable[[Run, Outcome], list[float]]:
    def of(run: Run, outcome: Outcome) -> list[float]:
        bare = pick(run.outcomes["upstream"], LOW_LOAD, figure)
        return [through - direct for through, direct in zip(pick(outcome, LOW_LOAD, figure), bare, strict=False)]

    return of


def _memory(_run: Run, outcome: Outcome) -> list[float]:
    return [float(outcome.resident_bytes)] if outcome.resident_bytes else []


_REQUESTS = _Metric("requests/s, 32 connections", True, _figure(SATURATION, "requests_per_s"))
_P50 = _Metric("latency p50, 1 connection", False, _figure(LOW_LOAD, "latency_p50"))
_ADDED_P50 = _Metric("added latency p50, 1 connection", False, _added("latency_p50"))
_ADDED_P99 = _Metric("added latency p99, 1 connection", False, _added("latency_p99"))
_EVENTS = _Metric("stream events/s, 16 connections", True, _figure(STREAMS, "events_per_s"))
_FIRST = _Metric("first streamed byte p50, 1 connection", False, _figure(FIRST_BYTE, "first_byte_p50"))
_PACED = _Metric("first streamed byte p50, paced, 16 connections", False, _figure(FIRST_BYTE_PACED, "first_byte_p50"))
_MEMORY = _Metric("resident memory after load", False, _memory)
_METRICS = (_REQUESTS, _ADDED_P50, _ADDED_P99, _EVENTS, _FIRST, _PACED, _MEMORY)


@dataclass(frozen=True, slots=True)
class _Goal:
    """What Tresor is meant to reach against one peer: a bound on the ratio, on its better side."""

    metric: _Metric
    peer: str
    bound: float

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.metric.more_is_better else '<'} {_ratio(self.bound)}"

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.metric.more_is_better else ratio < self.bound


_GOALS = (
    _Goal(_REQUESTS, "litellm", 60),
    _Goal(_REQUESTS, "portkey", 5),
    _Goal(_REQUESTS, "tensorzero", 1.3),
    _Goal(_EVENTS, "nginx", 1.0),
    _Goal(_ADDED_P50, "litellm", 1 / 20),
    _Goal(_ADDED_P50, "portkey", 1 / 2),
)


def _ratio(value: float) -> str:
    if value >= 10:  # noqa: PLR2004 - three digits say enough
        return f"{value:.0f}x"
    return f"{value:.2f}x" if value >= 0.2 else f"{value:.3f}x"  # noqa: PLR2004 - likewise


def _number(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"  # noqa: PLR2004 - likewise
    return text.replace(",", "\N{NO-BREAK SPACE}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table, padded so that a terminal shows it as one: texts to the left, then figures to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str], fill: str = " ") -> str:
        texts = [cell.ljust(width, fill) for cell, width in zip(cells, widths, strict=True)][:text_columns]
        figures = [cell.rjust(width, fill) for cell, width in zip(cells, widths, strict=True)][text_columns:]
        return f"| {' | '.join([*texts, *figures])} |"

    rule = line([""] * text_columns + [":"] * (len(head) - text_columns), "-")
    return "\n".join([line(head), rule, *map(line, rows)])


def _ratios(run: Run, metric: _Metric, peer: str) -> list[float]:
    """Tresor's value over the peer's, by round; empty where either is missing or only failed."""
    ours, theirs = (metric.of(run, run.outcomes[name]) if name in run.outcomes else [] for name in (_OURS, peer))
    return [own / other for own, other in zip(ours, theirs, strict=False) if other > 0]


def _ratio_table(run: Run) -> str:
    peers = [name for name in run.outcomes if name != "upstream" and not name.startswith(_OURS)]
    rows = []
    for metric in _METRICS:
        cells = [f"{metric.title} ({'more' if metric.more_is_better else 'less'} is better)"]
        for peer in peers:
            ratios = _ratios(run, metric, peer)
            cells.append(_ratio(statistics.median(ratios)) if ratios else "-")
        rows.append(cells)
    return _table(["Tresor relative to", *peers], rows)


def _goal_table(run: Run) -> str:
    rows = []
    for goal in _GOALS:
        ratios = _ratios(run, goal.metric, goal.peer)
        if ratios:
            median = statistics.median(ratios)
            verdict = "met" if goal.met(median) else "**not met**"
            measured, spread = _ratio(median), f"{_ratio(min(ratios))} to {_ratio(max(ratios))}"
        else:
            measured, spread, verdict = "-", "-", "not measured"
        rows.append([f"{goal.metric.title}, to {goal.peer}", goal.wanted, measured, spread, verdict])
    return _table(["Goal", "wanted", "measured", "over the rounds", "verdict"], rows)


def _absolute_table(run: Run) -> str:
    head = ["", "requests/s", "CPU µs/request", "core busy", "p50 µs", "p99 µs", "added p50", "added p99"]
    head += ["events/s", "core busy", "first byte p50 µs", "paced p50 µs", "paced p99 µs", "memory MB", "errors"]
    rows = []
    for name, outcome in run.outcomes.items():
        if not outcome.samples:
            rows.append([name, *["-"] * (len(head) - 1)])
            continue

        def median(phase: Phase, figure: str, of: Outcome = outcome) -> float:
            return statistics.median(pick(of, phase, figure))

        bare = name == "upstream"
        rows.append(
            [
                name,
                _number(median(SATURATION, "requests_per_s")),
                _number(median(SATURATION, "cpu_us")),
                "-" if bare else f"{median(SATURATION, 'busy'):.0%}",
                _number(median(LOW_LOAD, "latency_p50")),
                _number(median(LOW_LOAD, "latency_p99")),
                "-" if bare else _number(statistics.median(_ADDED_P50.of(run, outcome))),
                "-" if bare else _number(statistics.median(_ADDED_P99.of(run, outcome))),
                _number(median(STREAMS, "events_per_s")),
                "-" if bare else f"{median(STREAMS, 'busy'):.0%}",
                _number(median(FIRST_BYTE, "first_byte_p50")),
                _number(median(FIRST_BYTE_PACED, "first_byte_p50")),
                _number(median(FIRST_BYTE_PACED, "first_byte_p99")),
                _number(outcome.resident_bytes / 1e6),
                str(outcome.errors),
            ]
        )
    return _table(head, rows)


def _version_table(run: Run) -> str:
    rows = [[name, outcome.version, outcome.target.setting] for name, outcome in run.outcomes.items()]
    return _table(["", "version", "form and setting"], rows, text_columns=3)


def _trouble(run: Run) -> str:
    """What could not be measured, and what failed while it was."""
    lines = [f"- {name}: {outcome.missing}" for name, outcome in run.outcomes.items() if outcome.missing]
    lines += [
        f"- {name}: {outcome.errors} errors beside {outcome.answers} good answers; the first: {outcome.first_error}"
        for name, outcome in run.outcomes.items()
        if outcome.errors
    ]
    idle = [
        f"{name} ({phase.name}, {busy:.0%} of its core)"
        for phase in (SATURATION, STREAMS)
        for name, outcome in run.outcomes.items()
        if name != "upstream" and outcome.samples
        if (busy := statistics.median(pick(outcome, phase, "busy"))) < _BUSY
    ]
    if idle:
        lines.append(f"- Not limited by the gateway's own core: {', '.join(idle)}.")
    return "\n".join(lines) or "- None: every target was measured, and no request failed."


def _attested(run: Run) -> str:
    """What it costs a call that the upstream is attested: router, sidecar and TLS are the same."""
    rows = []
    for metric in (_P50, _REQUESTS, _EVENTS):
        demanded, plain = (metric.of(run, run.outcomes[name]) if name in run.outcomes else [] for name in _ATTESTED)
        ratios = [one / other for one, other in zip(demanded, plain, strict=False) if other > 0]
        if ratios:
            spread = f"{_ratio(min(ratios))} to {_ratio(max(ratios))}"
            rows.append([metric.title, _ratio(statistics.median(ratios)), spread])
    if not rows:
        return "Not measured."
    return _table(["tresor-attested relative to tresor-tls", "median", "over the rounds"], rows)


def _receipts(run: Run) -> str:
    if run.receipts is None:
        return "Tresor was not measured to the end, so its receipts were not counted."
    answers = run.outcomes[_OURS].answers
    verdict = "none is missing" if run.receipts >= answers else "**receipts are missing**"
    return (
        f"Tresor gave {answers} good answers, each with the id of a receipt. It was then killed (`SIGKILL`), and its "
        f"store held {run.receipts} receipts: {verdict}."
    )


def complete(run: Run) -> bool:
    """Was Tresor measured, and is every receipt it named in its store?"""
    return run.receipts is not None and run.receipts >= run.outcomes[_OURS].answers


def render(run: Run, command: str) -> str:
    """Render the whole report in Markdown."""
    cores = run.cores
    made = (
        f"Made by `{command}` on {dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; this file is written by it. Sources: `bench/`."
    )
    where = (
        f"Each gateway on core {cores.gateway}, the load on core {cores.load}, the upstream on core {cores.upstream}."
    )
    load = "Answers of 1 KB; streams of 64 events, each its own write, in a burst or, paced, one every 5 ms."
    return f"""\
# Performance

{made}

- Machine: {machine.describe()}; a small write with its flush takes {run.flush_us:.0f} µs.
- Python programs, Tresor and LiteLLM alike, run on the fastest CPython of their version here: {interpreter.describe()}.
- {where}
- {load}
- Rounds: {run.rounds}; in each, one window of {run.seconds:g} s for each target and kind of load.

## Goals

{_goal_table(run)}

## Ratios

{_ratio_table(run)}

{_receipts(run)}

## An attested upstream

Verification happens ahead of requests, in the background; a request pays for the comparison of 32 bytes.

{_attested(run)}

## Trouble

{_trouble(run)}

## Absolute figures, machine-dependent

Medians over the rounds.

{_absolute_table(run)}

## What was measured

{_version_table(run)}

## How to read this

{_HOW_TO_READ}

## What is not measured

{_NOT_MEASURED}
"""
