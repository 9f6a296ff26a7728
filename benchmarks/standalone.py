#!/usr/bin/env python3
"""Measures standalone from outside: throughput from file to searchable, time from a line's write to its being found,
and memory. Prints one JSON object. Beside them stands what the machine does at best in the same run, so that a figure can be
read on another machine: `cat` of the same file, and an append with fsync of a 1 MiB block.

    benchmarks/standalone.py [--megabytes 256] [--probes 200] [--binary target/release/logmesh]
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

WORDS = "GET POST /api/v1/users /static/app.js 200 404 500 timeout connected closed user session cache miss hit".split()


def line(rng, number):
    words = " ".join(rng.choices(WORDS, k=10))
    return f"2026-01-31T12:00:00.{number % 1000:03}Z INFO worker-{number % 16} request={number} {words}\n"


def generate(path, megabytes):
    rng = random.Random(1)
    block = "".join(line(rng, number) for number in range(50_000)).encode()
    with open(path, "wb") as out:
        for _ in range(max(1, megabytes * 1_000_000 // len(block))):
            out.write(block)
    return path.stat().st_size, block.count(b"\n") * max(1, megabytes * 1_000_000 // len(block))


def baseline(path, folder):
    begin = time.monotonic()
    subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
    cat = time.monotonic() - begin
    block, times = os.urandom(1 << 20), []
    with open(folder / "fsync", "wb") as out:
        for _ in range(64):
            begin = time.monotonic()
            out.write(block)
            out.flush()
            os.fsync(out.fileno())
            times.append(time.monotonic() - begin)
    return {"cat_mb_per_s": round(path.stat().st_size / cat / 1e6), "fsync_1mib_ms": round(statistics.median(times) * 1e3, 2)}


class Standalone:
    def __init__(self, binary, folder, glob):
        self.binary, self.data = binary, folder / "data"
        options = ["--data-dir", self.data, "--listen", "127.0.0.1:0", "--collect", glob]
        self.log = open(folder / "standalone.log", "wb")
        self.process = subprocess.Popen([binary, "standalone", *map(str, options)], stdout=subprocess.DEVNULL, stderr=self.log)
        addresses = self.data / "addresses.json"
        while not addresses.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"standalone ended: see {self.log.name}")
            time.sleep(0.02)
        self.server = json.loads(addresses.read_text())["grpc"]

    def count(self, query):
        command = [self.binary, "search", query, "--server", self.server, "--since", "24h", "--count"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return int(answer.stdout) if answer.returncode == 0 else 0

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(entry.split(":", 1) for entry in status.splitlines())
        return {name: int(fields[name].split()[0]) // 1024 for name in ("VmHWM", "VmRSS")}

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def throughput(mesh, size, lines, path, target):
    begin = time.monotonic()
    os.rename(path, target)
    while mesh.count("*") < lines:
        time.sleep(0.2)
    took = time.monotonic() - begin
    return {"megabytes": size / 1e6, "lines": lines, "seconds": round(took, 2),
            "mb_per_s": round(size / took / 1e6, 1), "lines_per_s": round(lines / took)}


def latency(mesh, folder, probes):
    times = []
    with open(folder / "probe.log", "ab", buffering=0) as out:
        for number in range(probes):
            token = f"probe{number:05}x{random.getrandbits(40):x}"
            begin = time.monotonic()
            out.write(f"a line with {token}\n".encode())
            while mesh.count(token) < 1:
                pass
            times.append(time.monotonic() - begin)
            time.sleep(random.random() * 0.05)
    times.sort()
    return {"probes": probes, "median_ms": round(statistics.median(times) * 1e3),
            "p99_ms": round(times[int(len(times) * 0.99) - 1] * 1e3), "max_ms": round(times[-1] * 1e3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--binary", default=str(Path(__file__).parent.parent / "target/release/logmesh"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = folder / "logs"
        logs.mkdir()
        size, lines = generate(folder / "big", args.megabytes)
        figures = {"machine": baseline(folder / "big", folder)}
        mesh = Standalone(args.binary, folder, f"{logs}/*.log")
        try:
            figures["idle_mb"] = mesh.memory()["VmRSS"]
            figures["throughput"] = throughput(mesh, size, lines, folder / "big", logs / "big.log")
            figures["latency"] = latency(mesh, logs, args.probes)
            figures["memory_mb"] = mesh.memory()
            audit = subprocess.run([args.binary, "audit", "--server", mesh.server], stdout=subprocess.DEVNULL, check=False)
            figures["audit_exit_code"] = audit.returncode
        finally:
            mesh.stop()
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
