"""The measurement: turns of targets within a phase, phases within a round, the order rotating all the time.

Every target is started once and stays up, frozen except in its turn.  A turn is one window of one phase; a round gives
each target one turn in each phase, all turns of a phase behind one another.  Ratios are formed within a round, of
windows seconds apart: a virtual machine's host takes speed away for seconds at a time, and gives it back.  Many short
windows and their median mend what is left of that; fewer, longer ones would not.
"""

import contextlib
import dataclasses
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench import machine
from bench.gateways import Tresor, Upstream
from bench.install import InstallError, c_program
from bench.process import Server, ServerError
from bench.target import MARK, MARKS, UPSTREAM_PORT, AnswerError, Endpoint, Target, parse_json

_SETTLE_S = 0.3  # before each window: connections open, caches of the thawed process warm


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One kind of load."""

    name: str
    connections: int
    stream: bool = False
    paced: bool = False
    saturating: bool = False


SATURATION = Phase(name="saturation", connections=32, saturating=True)
LOW_LOAD = Phase(name="low load", connections=1)
STREAMS = Phase(name="streams", connections=16, stream=True, saturating=True)
FIRST_BYTE = Phase(name="first byte", connections=1, stream=True)
FIRST_BYTE_PACED = Phase(name="first byte, paced", connections=16, stream=True, paced=True)
PHASES = (SATURATION, LOW_LOAD, STREAMS, FIRST_BYTE, FIRST_BYTE_PACED)

# Before the first round, so that just-in-time compilers and lazy imports are through.
_WARM_UP = ((SATURATION, 4.0), (STREAMS, 2.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one turn gave.  Times in microseconds."""

    answers: int
    errors: int
    first_error: str
    requests_per_s: float
    events_per_s: float
    latency_p50: float
    latency_p99: float
    first_byte_p50: float
    first_byte_p99: float
    busy: float  # share of its core that the target used, 0 to 1
    cpu_us: float  # processor time per good answer


@dataclass(slots=True, kw_only=True)
class Outcome:
    """All there is to say about one target."""

    target: Target
    version: str = "-"
    missing: str | None = None  # why it was not measured
    samples: dict[str, list[Sample]] = field(default_factory=dict)  # by phase, one per round
    answers: int = 0  # good ones, warm-up included
    errors: int = 0
    first_error: str = ""
    resident_bytes: int = 0

    def add(self, sample: Sample) -> None:
        """Count a sample's answers and errors."""
        self.answers += sample.answers
        self.errors += sample.errors
        self.first_error = self.first_error or sample.first_error


@dataclass(slots=True, kw_only=True)
class Run:
    """A whole run."""

    cores: machine.Cores
    rounds: int
    seconds: float
    flush_us: float
    outcomes: dict[str, Outcome]
    receipts: int | None = None  # rows in Tresor's store after it was killed


@dataclass(frozen=True, slots=True)
class _Running:
    server: Server
    endpoint: Endpoint


def _load(running: _Running, phase: Phase, *, cores: machine.Cores, settle_s: float, seconds: float) -> Sample:
    """Run the load generator once."""
    endpoint = running.endpoint
    argv = [str(c_program("load")), "--port", str(endpoint.port), "--path", endpoint.path]
    argv += ["--body", endpoint.body(stream=phase.stream, paced=phase.paced)]
    argv += ["--connections", str(phase.connections), "--warmup", str(settle_s), "--seconds", str(seconds)]
    argv += ["--mark", MARK, "--marks", str(MARKS)]
    for name, value in endpoint.headers.items():
        argv += ["--header", f"{name}: {value}"]
    for text in (*endpoint.required, *(["[DONE]"] if phase.stream else [])):
        argv += ["--require", text]
    if phase.saturating:
        argv += ["--batch"]
    before, start = machine.cpu_seconds(running.server.group), time.monotonic()
    with machine.pinned(cores.load):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    used, elapsed = machine.cpu_seconds(running.server.group) - before, time.monotonic() - start
    running.server.require_alive()
    if done.returncode != 0:
        raise ServerError(f"the load generator gave up: {done.stderr.strip()}")
    result = parse_json(done.stdout)
    return Sample(
        answers=result["answers"],
        errors=result["errors"],
        first_error=result["first_error"],
        requests_per_s=result["requests_per_s"],
        events_per_s=result["events_per_s"],
        latency_p50=result["latency_us"]["p50"],
        latency_p99=result["latency_us"]["p99"],
        first_byte_p50=result["first_byte_us"]["p50"],
        first_byte_p99=result["first_byte_us"]["p99"],
        busy=used / elapsed,
        cpu_us=used / max(result["answers"], 1) * 1e6,
    )


@contextlib.contextmanager
def _thawed(running: _Running) -> Iterator[None]:
    """Let a target run for its turn; the upstream, which all of them need, is never frozen."""
    running.server.thaw()
    try:
        yield
    finally:
        if running.endpoint.port != UPSTREAM_PORT:
            running.server.freeze()


def _start(outcome: Outcome, core: int) -> _Running | None:
    """Install and start a target; what goes wrong is kept for the report."""
    target = outcome.target
    try:
        outcome.version = target.install()
        print(f"bench: starting {target.name} {outcome.version}", flush=True)
        server, endpoint = target.start(core)
    except InstallError as error:
        outcome.missing = f"not installed: {error}"
    except (ServerError, AnswerError) as error:
        outcome.missing = f"not measured: {error}"
    else:
        return _Running(server, endpoint)
    print(f"bench: {target.name}: {outcome.missing}", flush=True)
    return None


def _turn(outcome: Outcome, running: _Running, phase: Phase, *, cores: machine.Cores, seconds: float) -> None:
    sample = _load(running, phase, cores=cores, settle_s=_SETTLE_S, seconds=seconds)
    outcome.samples.setdefault(phase.name, []).append(sample)
    outcome.add(sample)


def measure(targets: Sequence[Target], *, rounds: int, seconds: float) -> Run:
    """Install, start and measure the targets.

    Args:
        targets: what to compare; the bare upstream is always measured as well.
        rounds: turns per target and phase.
        seconds: length of a turn's window.

    Raises:
        SystemExit: the bare upstream or the load generator does not run, so that nothing can be measured.
    """
    cores = machine.choose_cores()
    upstream = Outcome(target=Upstream())
    outcomes = {"upstream": upstream} | {target.name: Outcome(target=target) for target in targets}
    with contextlib.ExitStack() as stack:
        try:
            c_program("load")
        except InstallError as error:
            raise SystemExit(f"bench: the load generator cannot be compiled: {error}") from error
        running: dict[str, _Running] = {}
        for name, outcome in outcomes.items():
            started = _start(outcome, cores.upstream if outcome is upstream else cores.gateway)
            if started is None and outcome is upstream:
                raise SystemExit(f"bench: no upstream; {upstream.missing}")
            if started is not None:
                stack.callback(started.server.kill)
                running[name] = started
                with _thawed(started):
                    pass  # frozen from here on
        run = Run(
            cores=cores,
            rounds=rounds,
            seconds=seconds,
            flush_us=machine.flush_us(upstream.target.directory),
            outcomes=outcomes,
        )
        _warm_up(run, running)
        for turn in range(rounds):
            print(f"bench: round {turn + 1} of {rounds}: {', '.join(running)}", flush=True)
            for offset, phase in enumerate(PHASES, start=turn):
                order = list(running)
                first = offset % len(order)
                for name in order[first:] + order[:first]:
                    with _dropping(outcomes[name], running), _thawed(running[name]):
                        _turn(outcomes[name], running[name], phase, cores=cores, seconds=seconds)
        for name, started in running.items():
            outcomes[name].resident_bytes = machine.resident_bytes(started.server.group)
    # Every server was killed outright, so what Tresor's store holds now had been durable before.
    tresor = outcomes.get("tresor")
    if tresor is not None and tresor.missing is None and isinstance(tresor.target, Tresor):
        run.receipts = tresor.target.count_receipts()
    return run


def _warm_up(run: Run, running: dict[str, _Running]) -> None:
    for name in list(running):
        with _dropping(run.outcomes[name], running), _thawed(running[name]):
            for phase, seconds in _WARM_UP:
                run.outcomes[name].add(_load(running[name], phase, cores=run.cores, settle_s=0, seconds=seconds))


@contextlib.contextmanager
def _dropping(outcome: Outcome, running: dict[str, _Running]) -> Iterator[None]:
    """Go on without a target that breaks down, and keep the reason for the report."""
    try:
        yield
    except ServerError as error:
        outcome.missing = f"broke down: {error}"
        running.pop(outcome.target.name).server.kill()
        print(f"bench: {outcome.target.name}: {outcome.missing}", flush=True)


def pick(outcome: Outcome, phase: Phase, figure: str) -> list[float]:
    """One figure of one target, by round."""
    return [float(dataclasses.asdict(sample)[figure]) for sample in outcome.samples.get(phase.name, [])]
