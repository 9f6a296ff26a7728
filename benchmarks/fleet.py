#!/usr/bin/env python3
"""Measures the centre with many agents: one config service (or several) on a real etcd, and simulated agents, each with a
connection and streams of its own. For each number of agents: time to connect all of them, time from a rule's write until the
last of them has acked it, memory of the config service per agent, its CPU while nothing happens but signs of life, and what
all of it costs etcd. Prints a table, and one JSON object to the file of --json.

    benchmarks/fleet.py [--agents 1000 10000] [--changes 10] [--idle-seconds 30] [--servers 1] [--bin target/release]

The programs are `cargo build --release -p logmesh -p logmesh-integration-tests --bins`. The agents run on the same machine
and take more of it than the centre does. `told` is when the message was read by the agent, `acked` when its report was
taken by the centre.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from agent import Process
from cluster import free_port

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300
# Agents report at most once a second: what follows at once on a change would measure that.
SETTLE = 3


def wait_for(look, what):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if look():
                return
        time.sleep(0.05)
    raise SystemExit(f"waited {LIMIT} s for {what}")


def metrics(port):
    """Counters of a metrics page by name, labels summed up."""
    found = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        for entry in page.read().decode().splitlines():
            if entry and not entry.startswith("#"):
                name, value = entry.rsplit(" ", 1)
                found[name.split("{")[0]] = found.get(name.split("{")[0], 0.0) + float(value)
    return found


class Etcd(Process):
    def __init__(self, folder):
        self.port = free_port()
        env = {**os.environ, "ETCD_PORT": str(self.port), "ETCD_DATA": str(folder / "etcd")}
        super().__init__([ROOT / "backends/etcd/run"], folder / "etcd.log", env=env, start_new_session=True)
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status == 200, "etcd")

    def writes(self):
        """What went through its log: puts, deletes, transactions and leases, each once."""
        return metrics(self.port)["etcd_server_proposals_applied_total"]


class Config(Process):
    def __init__(self, args, folder, etcd):
        self.port = free_port()
        settings = folder / f"config-{self.port}.toml"
        settings.write_text(f'config_servers = ["127.0.0.1:{self.port}"]\n[etcd]\nendpoints = ["127.0.0.1:{etcd.port}"]\n')
        self.admin = free_port()
        super().__init__([args.bin / "logmesh", "config", "--config", settings, "--listen", f"127.0.0.1:{self.port}",
                          "--listen-admin", f"127.0.0.1:{self.admin}"], folder / f"config-{self.port}.log")
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).status == 200, "config")


class Agents(Process):
    def __init__(self, args, folder, servers, number):
        command = [args.bin / "logmesh-fleet-sim", "--server", ",".join(f"127.0.0.1:{server.port}" for server in servers),
                   "--agents", number]
        super().__init__(command, folder / "agents.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the agents ended: {Path(self.log.name).read_text()[-2000:]}")
        return json.loads(answer)


@contextlib.contextmanager
def stopped_after(process):
    try:
        yield process
    finally:
        process.stop()


def measure(args, folder, number):
    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(stopped_after(Etcd(folder)))
        servers = [stack.enter_context(stopped_after(Config(args, folder, etcd))) for _ in range(args.servers)]
        cpu = lambda: sum(server.cpu() for server in servers)
        memory = lambda field: sum(server.memory(field) for server in servers)
        time.sleep(SETTLE)
        before, writes, busy = memory("VmRSS"), etcd.writes(), cpu()
        agents = stack.enter_context(stopped_after(Agents(args, folder, servers, number)))
        found = {"agents": number, "servers": args.servers, "connect_s": round(agents.ask("wait")["seconds"], 1)}
        agents.ask("change")
        time.sleep(SETTLE)
        found |= {"connect_etcd_writes": etcd.writes() - writes, "connect_cpu_s": round(cpu() - busy, 1)}
        found |= changes(args, agents, etcd, cpu)
        time.sleep(SETTLE)
        found |= idle(args, etcd, cpu)
        found |= {"rss_before_mb": before, "rss_mb": memory("VmRSS"), "peak_rss_mb": memory("VmHWM"),
                  "kb_per_agent": round((memory("VmRSS") - before) * 1024 / number, 1), "end": agents.ask("figures")}
        return found


def changes(args, agents, etcd, cpu):
    writes, busy, rounds = etcd.writes(), cpu(), []
    for _ in range(args.changes):
        rounds.append(agents.ask("change"))
        time.sleep(SETTLE)
    figures = {"changes": args.changes, "change_etcd_writes": (etcd.writes() - writes) / args.changes,
               "change_cpu_s": round((cpu() - busy) / args.changes, 2)}
    for kind in ("told", "acked"):
        for rank in ("p50_ms", "p99_ms", "max_ms"):
            of = [one[kind][rank] for one in rounds]
            figures[f"{kind}_{rank}"] = {"median": round(statistics.median(of)), "worst": round(max(of))}
    return figures


def idle(args, etcd, cpu):
    writes, busy, of_etcd, begin = etcd.writes(), cpu(), etcd.cpu(), time.monotonic()
    time.sleep(args.idle_seconds)
    took = time.monotonic() - begin
    percent = lambda seconds: round(seconds / took * 100, 1)
    return {"idle_cpu_percent": percent(cpu() - busy), "idle_etcd_cpu_percent": percent(etcd.cpu() - of_etcd),
            "idle_etcd_writes_per_s": round((etcd.writes() - writes) / took, 2)}


def show(rows):
    def spread(row, kind):
        return ", ".join(f"{rank} {row[f'{kind}_{rank}_ms']['median']} ({row[f'{kind}_{rank}_ms']['worst']})"
                         for rank in ("p50", "p99", "max"))
    for row in rows:
        many = f" on {row['servers']} config services" if row["servers"] > 1 else ""
        print(f"\n{row['agents']} agents{many}")
        print(f"  connected after          {row['connect_s']} s, {row['connect_cpu_s']} CPU s, {row['connect_etcd_writes']:.0f} etcd writes")
        print(f"  a change told after      {spread(row, 'told')} ms: median (worst) of {row['changes']} changes")
        print(f"  a change acked after     {spread(row, 'acked')} ms, {row['change_cpu_s']} CPU s, {row['change_etcd_writes']:.1f} etcd writes")
        print(f"  idle                     {row['idle_cpu_percent']} % of a core, etcd {row['idle_etcd_cpu_percent']} %, "
              f"{row['idle_etcd_writes_per_s']} etcd writes/s")
        print(f"  memory                   {row['rss_mb']} MB, {row['kb_per_agent']} KB an agent, peak {row['peak_rss_mb']} MB")
        print(f"  at the end               {row['end']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--idle-seconds", type=float, default=30)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release")
    args = parser.parse_args()
    # A connection for each agent, on either side.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = []
    for number in args.agents:
        with tempfile.TemporaryDirectory() as name:
            rows.append(measure(args, Path(name), number))
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
