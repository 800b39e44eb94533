"""`clinstack serve` under more load than it can take.

    python benchmarks/serving_load.py              # 64 clients for 60 seconds, about three minutes on two cores
    python benchmarks/serving_load.py --quick      # a smaller base, 12 seconds: under two minutes
    python benchmarks/serving_load.py --terminate  # only the end: SIGTERM in the middle of the load

A server of its own on loopback, with five stacks on a random base; clients and server share the machine. Most requests
ask one task about one note, some all five tasks, some have eight notes. Notes have the lengths of radiology reports
and discharge summaries, of which the stacks read 512 tokens.

capacity   As many requests a second as 16 clients get answered that ask again as soon as they have an answer. They do
           not quite fill the server.
saturated  Twice as many a second, at random moments (Poisson), whatever is answered: an open loop. Each client has an
           address of its own, so that the server's turns are between clients. What is answered, if that is more, is the
           capacity.
load       Twice the capacity, for longer.
end        The same load again; in its middle the server gets SIGTERM. Whatever it had taken must be answered, and what
           comes later gets 503 or no connection.

The script fails where a request got a 5xx (but for 503 after SIGTERM), no answer, another request's answer, scores that
are not those of the stack alone (to 1e-5), or a 429 without Retry-After; where the 99th percentile of the answers came
after the server's timeout; where the server's audit log and the clients do not agree about which requests were
answered; or where memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_load_clients import LOST, REFUSED, Client, Question, Reply, closed_loop, open_loop, scores
from turns import quiet_environment

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-5
"""Of a logit, in parts of the largest of its note where that is above 1."""
MEMORY = 1.25
"""How much more memory than before it a server may have needed under load."""
TIMES = 2.0
"""Load in parts of capacity."""
BEFORE_SIGNAL = 0.5
"""Seconds before SIGTERM, by which a request must have been read where it was sent earlier."""
CLOSED_CLIENTS = 16


@dataclass(frozen=True)
class Plan:
    """How much is asked of what."""

    model: dict[str, int]
    seconds: float
    clients: int = 64
    capacity_seconds: float = 12.0
    end_seconds: float = 12.0
    groups: int = 4
    """Of 16 notes."""
    queue_tokens: int = 32_768
    timeout: float = 10.0


def _model(hidden: int, layers: int) -> dict[str, int]:
    shape = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "num_hidden_layers": layers}
    return shape | {"num_attention_heads": hidden // 48, "num_key_value_heads": hidden // 48}


FULL = Plan(_model(288, 6), 60.0)
QUICK = Plan(_model(288, 2), 12.0, capacity_seconds=6.0, end_seconds=6.0)


@dataclass
class Part:
    """What became of the requests of one part."""

    name: str
    offered: float
    """Requests a second."""
    seconds: float
    replies: list[Reply]
    failures: list[str] = field(default_factory=list)
    largest_difference: float = 0.0

    @property
    def answered(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.status == 200]

    def count(self, *statuses: int) -> int:
        return sum(reply.status in statuses for reply in self.replies)

    def latency(self, share: float) -> float:
        """Return the seconds within which a share of the answers came."""
        seconds = sorted(reply.seconds for reply in self.answered)
        return seconds[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else float("nan")

    def large(self) -> str:
        """Return how many of the requests of eight notes were answered."""
        statuses = [reply.status for reply in self.replies if len(reply.question.notes) > 1]
        return f"{statuses.count(200)} of {len(statuses)}"


class Server:
    """`clinstack serve` as a process."""

    def __init__(self, work: Path, plan: Plan) -> None:
        self.port = 0
        self.token = secrets.token_urlsafe(24)
        self.state = work / "state"
        named = [f"--name={folder.name}={folder}" for folder in sorted((work / "stacks").iterdir())]
        limits = {
            "port": 0,
            "state": self.state,
            "threads": 1,
            "queue-tokens": plan.queue_tokens,
            "timeout-s": plan.timeout,
            "requests-per-minute": 0,
            "audit-bytes": 1_000_000_000,
        }
        command = [sys.executable, "-m", "clinstack", "serve", *named]
        command += [f"--{name}={value}" for name, value in limits.items()]
        self._log = (work / "server.log").open("wb+")
        environment = {**quiet_environment(1), "CLINSTACK_TOKEN": self.token}
        self._process = subprocess.Popen(command, cwd=work, env=environment, stdout=self._log, stderr=self._log)

    async def ready(self, seconds: float = 120.0) -> None:
        """Wait until it takes requests; then it prints where."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and self._process.poll() is None:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", Path(self._log.name).read_text(errors="replace"))
            if found:
                self.port = int(found[1])
                return
            await asyncio.sleep(0.1)
        self.fail("did not start")

    def fail(self, what: str) -> None:
        """End the script with the last lines of the server's log."""
        self.close()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()[-8:]
        sys.exit(f"The server {what}:\n" + "\n".join(lines))

    def memory(self, name: str) -> float:
        """Return its resident memory in MB: now (VmRSS), or its highest (VmHWM)."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        raise OSError(f"/proc has no {name}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, seconds: float) -> int | None:
        """Wait for its end and return its exit status; None if it does not come."""
        try:
            return await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            return None

    def audited(self) -> Counter[str]:
        """Return of the audit log how often a request was answered with 200, by its name."""
        found: Counter[str] = Counter()
        for line in (self.state / "audit.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry["endpoint"] == "POST /v1/predict" and entry["status"] == 200:
                found[entry["ids"][0].partition(".")[0]] += 1
        return found

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def questions(notes: int, tasks: Sequence[str], seed: int) -> Iterator[Question]:
    """Yield requests: 14 of 20 of one task for one note, 5 of all tasks for one, one of a task for eight."""
    chance = random.Random(seed)
    while True:
        kind = chance.random()
        if kind < 0.70:
            yield Question([chance.randrange(notes)], [chance.choice(tasks)])
        elif kind < 0.95:
            yield Question([chance.randrange(notes)], list(tasks))
        else:
            yield Question(chance.sample(range(notes), 8), [chance.choice(tasks)])


def poisson(rate: float, clients: int, seconds: float, seed: int) -> list[list[float]]:
    """Return for each client the moments at which it asks; together they ask ``rate`` times a second."""
    chance = random.Random(seed)
    moments: list[list[float]] = []
    for _ in range(clients):
        moment, own = chance.expovariate(rate / clients), []
        while moment < seconds:
            own.append(moment)
            moment += chance.expovariate(rate / clients)
        moments.append(own)
    return moments


def addresses(count: int) -> list[str]:
    """Return as many addresses of this machine, or its one where it has no others (Linux has 127.0.0.0/8)."""
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.2", 0))
    except OSError:
        return ["127.0.0.1"] * count
    return [f"127.0.{1 + number // 200}.{1 + number % 200}" for number in range(count)]


def check(part: Part, expected: dict[str, list[list[float]]], timeout: float) -> None:
    """Hold every reply against what is promised."""
    for reply in part.replies:
        if reply.status == 429 and not (reply.retry_after or "").isdigit():
            part.failures.append(f"{reply.name}: 429 without Retry-After")
    for reply in part.answered:
        try:
            told = scores(reply)
        except (ValueError, KeyError) as error:
            part.failures.append(str(error))
            continue
        for (note, task), logits in told.items():
            wanted = expected[task][note]
            scale = max(1.0, *map(abs, wanted))
            difference = max(abs(one - other) for one, other in zip(logits, wanted, strict=True)) / scale
            part.largest_difference = max(part.largest_difference, difference)
    if part.largest_difference > TOLERANCE:
        part.failures.append(f"scores differ from the stacks' own by {part.largest_difference:.1e}")
    # Not while its capacity is measured: only then does a server learn how fast it is beside its clients.
    if part.answered and part.name not in {"capacity", "saturated"} and part.latency(0.99) > timeout:
        part.failures.append(f"the 99th percentile of answers came after {part.latency(0.99):.1f} seconds")


def check_audit(part: Part, audited: Counter[str]) -> None:
    """Hold the names of the requests that clients got an answer to against the server's log."""
    got = Counter(reply.name for reply in part.answered)
    own = Counter({name: count for name, count in audited.items() if any(name == one.name for one in part.replies)})
    if got != own:
        part.failures.append(f"{sum((own - got).values())} answers were lost, {sum((got - own).values())} are new")


async def watch(server: Server, seen: list[float]) -> None:
    """Note the server's memory twice a second."""
    while True:
        seen.append(server.memory("VmRSS"))
        await asyncio.sleep(0.5)


async def measure_capacity(server: Server, plan: Plan, ask: Iterator[Question], texts: Sequence[str]) -> Part:
    """Ask in a closed loop; what is answered in the first quarter is no part of the figure."""
    clients = [Client(server.port, server.token, address) for address in addresses(CLOSED_CLIENTS)]
    began = time.monotonic()
    replies = await closed_loop(clients, ask, texts, plan.capacity_seconds)
    first, last = began + plan.capacity_seconds / 4, began + plan.capacity_seconds
    counted = [reply for reply in replies if reply.status == 200 and first <= reply.sent + reply.seconds < last]
    for client in clients:
        client.close()
    return Part("capacity", len(counted) / (last - first), last - first, replies)


async def put_load(
    server: Server,
    plan: Plan,
    rate: float,
    ask: Iterator[Question],
    texts: Sequence[str],
    memory: list[float],
    name: str,
) -> Part:
    """Ask in an open loop."""
    seconds = plan.seconds if name == "load" else plan.capacity_seconds
    clients = [Client(server.port, server.token, address) for address in addresses(plan.clients)]
    moments = poisson(rate, plan.clients, seconds, seed=1)
    watching = asyncio.create_task(watch(server, memory))
    replies = await open_loop(clients, ask, texts, moments, time.monotonic(), name)
    watching.cancel()
    for client in clients:
        client.close()
    part = Part(name, rate, seconds, replies)
    unwanted = Counter(reply.status for reply in replies if reply.status not in {200, 429})
    if unwanted:
        part.failures.append(f"answers by status, {LOST} for none: {dict(unwanted)}")
    return part


async def terminate(
    server: Server, plan: Plan, rate: float, ask: Iterator[Question], texts: Sequence[str]
) -> tuple[Part, float]:
    """Ask in an open loop, and send SIGTERM in its middle; return also how long the server took to end."""
    clients = [Client(server.port, server.token, address) for address in addresses(plan.clients)]
    began = time.monotonic()
    at = began + plan.end_seconds / 2
    moments = poisson(rate, plan.clients, plan.end_seconds, seed=2)
    asking = asyncio.create_task(open_loop(clients, ask, texts, moments, began, "end"))
    await asyncio.sleep(at - time.monotonic())
    at = time.monotonic()
    server.signal(signal.SIGTERM)
    status = await server.ended(60.0)
    ended = time.monotonic() - at
    replies = await asking
    part = Part("end", rate, plan.end_seconds, replies)
    if status != 0:
        part.failures.append(f"the server ended with {status}")
    early = [reply for reply in replies if reply.sent < at - BEFORE_SIGNAL and reply.status not in {200, 429}]
    if early:
        part.failures.append(f"{len(early)} requests that it had taken were not answered")
    wrong = {reply.status for reply in replies} - {200, 429, 503, LOST, REFUSED}
    if wrong:
        part.failures.append(f"answers with status {sorted(wrong)}")
    return part, ended


def row(part: Part) -> str:
    """Return a part's line of the table."""
    figures = [f"{part.offered:,.1f}", f"{len(part.replies):,}", f"{len(part.answered):,}", f"{part.count(429):,}"]
    figures += [str(part.count(503)), str(part.count(500, 502, 504))]
    figures += [str(part.count(LOST)), str(part.count(REFUSED)), part.large()]
    figures += [f"{part.latency(share):.1f} s" for share in (0.5, 0.99)]
    return f"| {part.name} | " + " | ".join(figures) + " |"


async def run(work: Path, plan: Plan, *, only_end: bool) -> dict[str, Any]:
    """Do all parts, print what came of them, and return the figures."""
    expected: dict[str, list[list[float]]] = json.loads((work / "offline.json").read_text())
    texts = [json.loads(line)["text"] for line in (work / "notes.jsonl").read_text().splitlines()]
    ask = questions(len(texts), sorted(expected), seed=0)
    server = Server(work, plan)
    parts: list[Part] = []
    figures: dict[str, Any] = {}
    memory: list[float] = []
    try:
        await server.ready()
        first = await measure_capacity(server, plan, ask, texts)
        saturated = await put_load(server, plan, TIMES * first.offered, ask, texts, [], "saturated")
        parts += [first, saturated]
        figures["capacity"] = max(first.offered, len(saturated.answered) / saturated.seconds)
        rate = TIMES * figures["capacity"]
        before = server.memory("VmHWM")
        cpu, wall = time.process_time(), time.monotonic()
        if not only_end:
            load = await put_load(server, plan, rate, ask, texts, memory, "load")
            parts.append(load)
            figures["clients_cpu"] = (time.process_time() - cpu) / (time.monotonic() - wall)
            figures["memory_mb"] = {"before": before, "peak": server.memory("VmHWM"), "last": memory[-1]}
            if server.memory("VmHWM") > MEMORY * before:
                load.failures.append(f"memory grew from {before:,.0f} to {server.memory('VmHWM'):,.0f} MB")
        end, figures["seconds_to_end"] = await terminate(server, plan, rate, ask, texts)
        parts.append(end)
    finally:
        server.close()
    audited = server.audited()
    for part in parts:
        check(part, expected, plan.timeout)
        check_audit(part, audited)
    return figures | {"parts": parts}


def report(found: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Print the table and return the line of JSON."""
    parts: list[Part] = found.pop("parts")
    names = ["part", "asked for, a second", "requests", "200", "429", "503", "other 5xx", "no answer", "no connection"]
    names += ["200 of 8 notes", "p50", "p99"]
    print(f"| {' | '.join(names)} |")
    print("|---|" + "---:|" * (len(names) - 1))
    print("\n".join(row(part) for part in parts))
    ratios: dict[str, float] = {
        "server_errors": sum(part.count(500, 502, 504) for part in parts if part.name in {"load", "end"})
    }
    result: dict[str, Any] = {"benchmark": "serving_load", "ratios": ratios}
    for part in parts:
        if part.name == "load":
            memory = found["memory_mb"]
            ratios["accepted_of_capacity"] = len(part.answered) / part.seconds / found["capacity"]
            result |= {"answered": len(part.answered), "refused": part.count(429)}
            ratios["p99_of_timeout"] = part.latency(0.99) / plan.timeout
            ratios["peak_memory"] = memory["peak"] / memory["before"]
            print(
                f"\nMemory of the server: {memory['before']:,.0f} MB before the load, {memory['peak']:,.0f} MB at its "
                f"highest, {memory['last']:,.0f} MB at its end. The clients used {found['clients_cpu']:.0%} of a core."
            )
    ended = found["seconds_to_end"]
    print(f"After SIGTERM the server ended within {ended:.1f} s.")
    print(f"Largest difference of a logit from the stack's own: {max(p.largest_difference for p in parts):.1e}.")
    failures = [f"{part.name}: {failure}" for part in parts for failure in part.failures]
    print("\n".join(failures[:20]) or "Every answer was given once, in time, and as the stack alone gives it.")
    result |= {name: value for name, value in found.items() if name != "parts"}
    result["failures"] = len(failures)
    result["ratios"] = {name: round(value, 3) for name, value in ratios.items()}
    return result


def main() -> None:
    """Make what is served, and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller base and 12 seconds, under two minutes")
    parser.add_argument("--seconds", type=float, help="of the load (default 60)")
    parser.add_argument("--clients", type=int, help="of the load (default 64)")
    parser.add_argument("--terminate", action="store_true", help="only the capacity and the end by SIGTERM")
    arguments = parser.parse_args()
    chosen = QUICK if arguments.quick else FULL
    plan = Plan(
        **{
            **chosen.__dict__,
            "seconds": arguments.seconds or chosen.seconds,
            "clients": arguments.clients or chosen.clients,
        }
    )
    print(f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; one thread computes")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for command in (["make", name, json.dumps(plan.model), str(plan.groups)], ["offline", name]):
            arms = [sys.executable, str(HERE / "serving_load_stacks.py"), *command]
            subprocess.run(arms, check=True, env=quiet_environment(1), stdout=subprocess.DEVNULL)
        found = asyncio.run(run(work, plan, only_end=arguments.terminate))
        result = report(found, plan)
    print(json.dumps(result))
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
