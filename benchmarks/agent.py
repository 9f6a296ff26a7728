#!/usr/bin/env python3
"""Measures the agent alone: from files to a gateway that acks and keeps nothing, over gRPC on loopback. Beside it, in the same
run and on the same files, stand what `cat` takes and what rsyslog takes (imfile to TCP, where it is installed: a reader that
only counts, and no acks). Prints a table, and one JSON object to the file of --json.

    benchmarks/agent.py [--megabytes 1000] [--files 1000] [--idle-files 10000] [--idle-seconds 30] [--bin target/release]

The sink is `cargo build --release -p logmesh-agent --bins --examples`. CPU is the collector's own, without the sink's.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

WORDS = "GET POST /api/v1/users /static/app.js 200 404 500 timeout connected closed user session cache miss hit".split()
TICKS = os.sysconf("SC_CLK_TCK")
LIMIT = 600
IDLE_LIMIT = 60


def line(rng, number):
    words = " ".join(rng.choices(WORDS, k=10))
    return f"2026-01-31T12:00:00.{number % 1000:03}Z INFO worker-{number % 16} request={rng.getrandbits(40)} {words}\n"


def generate(folder, files, total):
    """Files of the same size, `total` bytes in all or a little less; answers bytes and lines."""
    rng = random.Random(1)
    block = "".join(line(rng, number) for number in range(8_000)).encode()
    each = max(1, total // files)
    blocks, rest = divmod(each, len(block))
    part = block[: block.rfind(b"\n", 0, rest) + 1]
    for number in range(files):
        with open(folder / f"{number:05}.log", "wb") as out:
            # Files that begin alike might be copies of each other, which is looked into.
            out.write(first := f"the log of worker {number:08}\n".encode())
            for _ in range(blocks):
                out.write(block)
            out.write(part)
    lines = files * (1 + blocks * block.count(b"\n") + part.count(b"\n"))
    return files * (len(first) + blocks * len(block) + len(part)), lines


class Process:
    """A program that is measured from outside and ended by its own id."""

    def __init__(self, command, log, **more):
        self.log = open(log, "wb")
        self.process = subprocess.Popen([str(part) for part in command], stderr=self.log, **more)
        self.pid = self.process.pid

    def cpu(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self, field):
        status = Path(f"/proc/{self.pid}/status").read_text()
        fields = dict(entry.split(":", 1) for entry in status.splitlines())
        return round(int(fields[field].split()[0]) / 1024, 1)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        self.log.close()


class Sink(Process):
    def __init__(self, bin_dir, folder, glob):
        super().__init__([bin_dir / "examples/sink", glob], folder / "sink.log", stdout=subprocess.PIPE)
        self.addresses = json.loads(self.process.stdout.readline())
        os.set_blocking(self.process.stdout.fileno(), False)
        self.counted = (0, 0)

    def count(self):
        """The bytes that it acked, and the lines that came to the plain port."""
        if said := self.process.stdout.read():
            self.counted = tuple(int(number) for number in said.splitlines()[-1].split())
        return self.counted


class Agent(Process):
    name = "logmesh-agent"

    def __init__(self, args, folder, logs, sink):
        self.sink = sink
        config = folder / "agent.toml"
        options = [f"servers = {json.dumps([sink.addresses['centre']])}", f"allow = {json.dumps([f'{logs}/**'])}",
                   f"state_dir = {json.dumps(str(folder / 'state'))}", 'listen_admin = "127.0.0.1:0"',
                   f"compression = {json.dumps(args.compression)}"]
        config.write_text("\n".join(options))
        log = folder / "agent.log"
        super().__init__([args.bin / "logmesh-agent", "--config", config], log)
        self.admin = wait_for(lambda: log.read_text().partition("metrics=")[2].split()[:1] or None, "the agent")[0]
        wait_for(lambda: self.get("/readyz").startswith("centre: ready\ngateway: ready"), "the agent to be ready")

    def get(self, path):
        try:
            return urllib.request.urlopen(f"http://{self.admin}{path}").read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def metric(self, name):
        found = [text for text in self.get("/metrics").splitlines() if text.startswith(name + " ")]
        return float(found[0].split()[1]) if found else 0.0

    def sent_bytes(self):
        """What went over its connections, as the kernel counts it."""
        told = subprocess.run(["ss", "-tinpH"], capture_output=True, text=True, check=False).stdout
        entries = told.replace("\n\t", " ").splitlines()
        return sum(int(entry.partition(" bytes_sent:")[2].split()[0]) for entry in entries
                   if f"pid={self.pid}," in entry and " bytes_sent:" in entry)

    def is_done(self, size, _lines):
        return self.sink.count()[0] >= size

    def is_following(self, files):
        return self.metric("logmesh_agent_files") >= files and self.metric("logmesh_agent_lag_bytes") == 0


class Rsyslog(Process):
    name = "rsyslog"

    def __init__(self, _args, folder, logs, sink):
        self.sink = sink
        host, port = sink.addresses["plain"].split(":")
        config = folder / "rsyslog.conf"
        config.write_text(
            f'global(workDirectory="{folder}")\nmodule(load="imfile" mode="inotify")\n'
            f'input(type="imfile" File="{logs}/*.log" Tag="bench" ruleset="out")\n'
            'template(name="raw" type="string" string="%msg%\\n")\n'
            'ruleset(name="out" queue.type="LinkedList" queue.size="50000") {\n'
            f'  action(type="omfwd" target="{host}" port="{port}" protocol="tcp" template="raw")\n}}\n')
        super().__init__([shutil.which("rsyslogd"), "-n", "-f", config, "-i", folder / "rsyslog.pid"], folder / "rsyslog.log")
        time.sleep(1)

    def is_done(self, _size, lines):
        return self.sink.count()[1] >= lines


def wait_for(look, what):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        time.sleep(0.01)
    raise SystemExit(f"waited {LIMIT} s for {what}")


@contextlib.contextmanager
def running(kind, args):
    """A collector with a folder that it collects, and a sink."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        logs = folder / "logs"
        logs.mkdir()
        sink = Sink(args.bin, folder, f"{logs}/*.log")
        try:
            collector = kind(args, folder, logs, sink)
            try:
                yield collector, logs
            finally:
                collector.stop()
        finally:
            sink.stop()


def throughput(kind, args, source, size, lines):
    with running(kind, args) as (collector, logs):
        before = collector.cpu()
        begin = time.monotonic()
        for path in sorted(source.iterdir()):
            os.link(path, logs / path.name)
        wait_for(lambda: collector.is_done(size, lines), f"{kind.name} to be done")
        took, cpu = time.monotonic() - begin, collector.cpu() - before
        figures = {"mb_per_s": round(size / took / 1e6), "cpu_s_per_gb": round(cpu / size * 1e9, 2),
                   "peak_rss_mb": collector.memory("VmHWM")}
        if kind is Agent:
            figures["sent_per_byte"] = round(collector.sent_bytes() / size, 3)
        return figures


def idle(kind, args):
    with running(kind, args) as (collector, logs):
        for number in range(args.idle_files):
            (logs / f"{number:05}.log").write_text(f"the only line of file {number}\n")
        def is_done():
            return collector.is_following(args.idle_files) if kind is Agent else collector.is_done(0, args.idle_files)
        end = time.monotonic() + IDLE_LIMIT
        while not (done := is_done()) and time.monotonic() < end:
            time.sleep(0.1)
        # What ten thousand new files leave to be done is over by then.
        time.sleep(30)
        before = collector.cpu()
        time.sleep(args.idle_seconds)
        cpu = (collector.cpu() - before) / args.idle_seconds
        found = {"cpu_percent": round(cpu * 100, 3), "rss_mb": collector.memory("VmRSS"), "all_read": done}
        print(f"{args.idle_files} idle files", kind.name, found, file=sys.stderr)
        return found


def baseline(source):
    begin = time.monotonic()
    paths = sorted(source.iterdir())
    for start in range(0, len(paths), 500):
        subprocess.run(["cat", *paths[start:start + 500]], stdout=subprocess.DEVNULL, check=True)
    return round(sum(path.stat().st_size for path in paths) / (time.monotonic() - begin) / 1e6)


def show(figures):
    print(f"{'':16}{'what':28}{'MB/s':>8}{'CPU s/GB':>10}{'peak RSS MB':>13}")
    for what, found in figures["throughput"].items():
        print(f"{'cat':16}{what:28}{found['cat_mb_per_s']:>8}")
        for name, row in found.items():
            if name != "cat_mb_per_s":
                print(f"{name:16}{what:28}{row['mb_per_s']:>8}{row['cpu_s_per_gb']:>10}{row['peak_rss_mb']:>13}")
    print(f"\n{'':16}{'what':28}{'CPU %':>8}{'RSS MB':>10}")
    for name, row in figures["idle"].items():
        print(f"{name:16}{str(figures['idle_files']) + ' idle files':28}{row['cpu_percent']:>8}{row['rss_mb']:>10}"
              + ("" if row["all_read"] else f"   (not all read after {IDLE_LIMIT} s)"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--idle-files", type=int, default=10_000)
    parser.add_argument("--idle-seconds", type=float, default=30)
    parser.add_argument("--compression", default="auto", choices=["auto", "zstd", "none"])
    parser.add_argument("--only", choices=["logmesh-agent", "rsyslog"])
    parser.add_argument("--folder", help="where the files are made; best not on a disk")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bin", type=Path, default=Path(__file__).parent.parent / "target/release")
    args = parser.parse_args()
    # The other one holds every file open.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kinds = [kind for kind in (Agent, Rsyslog) if args.only in (None, kind.name)]
    if Rsyslog in kinds and not shutil.which("rsyslogd"):
        kinds.remove(Rsyslog)
    figures = {"throughput": {}, "idle_files": args.idle_files, "idle": {}}
    for files in (1, args.files):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            size, lines = generate(Path(name), files, args.megabytes * 1_000_000)
            what = f"{files} file{'s' * (files > 1)} of {size / files / 1e6:.0f} MB"
            found = figures["throughput"][what] = {"cat_mb_per_s": baseline(Path(name))}
            for kind in kinds:
                found[kind.name] = throughput(kind, args, Path(name), size, lines)
                print(what, kind.name, found[kind.name], file=sys.stderr)
    if args.idle_files:
        figures["idle"] = {kind.name: idle(kind, args) for kind in kinds}
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
