#!/usr/bin/env python3
"""Measures a mesh of processes apart, on a real etcd, Kafka and Elasticsearch: lines/s from file to Kafka (transfer isn't
running), from Kafka to Elasticsearch (the agent has nothing to do), and from file to found (all at once); time from a line's
write to its being found; memory of each process. Prints one JSON object. The servers' own speed in the same run stands beside
it: Kafka's producer tool with records of the same size, and what the machine does at best.

    benchmarks/cluster.py [--megabytes 100] [--probes 100] [--format events|chunks] [--binaries target/release]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from mesh import ROOT, Mesh
from standalone import baseline, generate


def rate(size, lines, took):
    return {"seconds": round(took, 2), "mb_per_s": round(size / took / 1e6, 1), "lines_per_s": round(lines / took)}


def kafka_alone(mesh, megabytes):
    """What Kafka's own producer tool reaches with records of about the size of an event here."""
    tool = [str(ROOT / "backends/kafka/run"), "tool"]
    server = f"127.0.0.1:{mesh.port['kafka']}"
    subprocess.run([*tool, "TopicCommand", "--bootstrap-server", server, "--create", "--topic", "peer", "--partitions", "4"],
                   capture_output=True, check=True)
    records = megabytes * 1_000_000 // 500
    done = subprocess.run([*tool, "ProducerPerformance", "--topic", "peer", "--num-records", str(records), "--record-size", "500",
                           "--throughput", "-1", "--bootstrap-server", server, "--command-property", "acks=all",
                           "--command-property", "compression.type=lz4"], capture_output=True, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if "records/sec" in line]
    return last[-1].strip() if last else (done.stderr or done.stdout)[-300:]


def stages(mesh, size, lines, source):
    """File to Kafka, then Kafka to Elasticsearch, each alone."""
    mesh.stop("transfer")
    mesh.apply("stages")
    begin = time.monotonic()
    target = mesh.folder / "logs/stages.log"
    os.link(source, target)
    mesh.wait(lambda: mesh.acked(target) == size, "the agent to see all acked")
    to_kafka = time.monotonic() - begin
    begin = time.monotonic()
    mesh.start("transfer")
    mesh.wait(lambda: mesh.count('log.file.path:*stages*') >= lines, "all lines to be found")
    to_index = time.monotonic() - begin
    return {"file_to_kafka": rate(size, lines, to_kafka), "kafka_to_elasticsearch": rate(size, lines, to_index)}


def together(mesh, size, lines, source):
    mesh.apply("together")
    begin = time.monotonic()
    # A copy: a hard link would be the same file.
    subprocess.run(["cp", str(source), str(mesh.folder / "logs/together.log")], check=True)
    mesh.wait(lambda: mesh.count('log.file.path:*together*') >= lines, "all lines to be found")
    return rate(size, lines, time.monotonic() - begin)


def latency(mesh, probes):
    mesh.apply("probe")
    times = []
    with open(mesh.folder / "logs/probe.log", "ab", buffering=0) as out:
        for number in range(probes):
            token = f"probe{number:05}x{random.getrandbits(40):x}"
            begin = time.monotonic()
            out.write(f"a line with {token}\n".encode())
            while mesh.count(token) < 1:
                time.sleep(0.005)
            if number:  # the first one waits for the topic to be made
                times.append(time.monotonic() - begin)
            time.sleep(random.random() * 0.3)
    times.sort()
    return {"probes": len(times), "median_ms": round(statistics.median(times) * 1e3),
            "p99_ms": round(times[int(len(times) * 0.99) - 1] * 1e3), "max_ms": round(times[-1] * 1e3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--format", choices=["events", "chunks"], default="events")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size, lines = generate(folder / "big", args.megabytes)
        figures = {"format": args.format, "megabytes": size / 1e6, "lines": lines, "machine": baseline(folder / "big", folder)}
        mesh = Mesh(folder, args.binaries.resolve(), f'[topics.default]\nformat = "{args.format}"\n')
        try:
            mesh.start_servers()
            figures["kafka_producer_tool_500_byte_records"] = kafka_alone(mesh, args.megabytes)
            for service in ("config", "gateway", "transfer", "console", "agent"):
                mesh.start(service)
            mesh.wait(lambda: mesh.ctl("status").returncode == 0, "the mesh")
            figures["idle"] = mesh.memory()
            figures["latency"] = latency(mesh, args.probes)
            figures |= stages(mesh, size, lines, folder / "big")
            figures["file_to_found"] = together(mesh, size, lines, folder / "big")
            figures["memory"] = mesh.memory()
            figures["audit_exit_code"] = mesh.ctl("audit").returncode
        finally:
            mesh.end()
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
