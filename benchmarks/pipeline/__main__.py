#!/usr/bin/env python3
"""Measures each stretch of the pipeline, every one in the same run as its reference, on this machine and over loopback:

- file to Kafka: agent and gateway, in both formats, beside rsyslog (imfile to omkafka; Debian: rsyslog, rsyslog-kafka) and Kafka's
  own ProducerPerformance;
- Kafka to Elasticsearch: transfer, in both formats, beside a raw replay of the bulk bodies that it sends, and the same without
  ids;
- file to searchable in a standalone.

Runs alternate with their reference; medians stand beside the least and the most. To Kafka and to Elasticsearch there is a round
more, the first, of which nothing is shown: it warms the servers for all alike. A run of which a line is missing or there twice
in the topic or the index ends the benchmark without a figure.

    python3 benchmarks/pipeline [--lines 1000000] [--rounds 3] [--parts kafka,index,standalone] [--bin target/release]
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import standalone_part  # noqa: E402
import to_index  # noqa: E402
import to_kafka  # noqa: E402

PARTS = {"kafka": to_kafka.run, "index": to_index.run, "standalone": standalone_part.run}
# What is set beside what, and the aim of issue 7.
RATIOS = [
    ("lines_per_s", "logmesh, events", "rsyslog, raw lines", "at least 2"),
    ("collector_cpu_s_per_million", "logmesh, events", "rsyslog, raw lines", "below 1"),
    ("lines_per_s", "logmesh, events", "rsyslog, raw, as it comes", "at least 2"),
    ("collector_cpu_s_per_million", "logmesh, events", "rsyslog, raw, as it comes", "below 1"),
    ("lines_per_s", "logmesh, chunks", "rsyslog, raw, as it comes", "at least 6"),
    ("lines_per_s", "logmesh, events", "rsyslog, JSON", ""),
    ("collector_cpu_s_per_million", "logmesh, events", "rsyslog, JSON", ""),
    ("lines_per_s", "logmesh, chunks", "rsyslog, raw lines", "at least 6"),
    ("collector_cpu_s_per_million", "logmesh, chunks", "rsyslog, raw lines", "below 1"),
    ("lines_per_s", "logmesh, events", "Kafka's ProducerPerformance", ""),
    ("lines_per_s", "transfer, events", "raw replay", "at least 0.95"),
    ("lines_per_s", "transfer, chunks", "raw replay", "at least 0.95"),
    ("lines_per_s", "raw replay", "raw replay without ids", ""),
    ("elasticsearch_cpu_s_per_million", "raw replay", "raw replay without ids", ""),
    ("index_bytes_per_line", "raw replay", "raw replay without ids", ""),
    ("lines_per_s", "standalone", "raw replay", ""),
]


def spread(runs, key):
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    digits = 0 if max(values) >= 100 else 2
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def show(found):
    keys = sorted({key for runs in found.values() for run in runs for key in run}, key=lambda key: (key != "lines_per_s", key))
    for name, runs in found.items():
        print(f"\n{name}, {len(runs)} runs")
        for key in keys:
            if text := spread(runs, key):
                print(f"    {key:36}{text}")
    print(f"\n{'ratio':36}{'of':24}{'to':32}{'':8}aim")
    for key, one, other, aim in RATIOS:
        values = [[run[key] for run in found.get(name, []) if key in run] for name in (one, other)]
        if all(values):
            ratio = statistics.median(values[0]) / statistics.median(values[1])
            print(f"{key:36}{one:24}{other:32}{ratio:<8.2f}{aim}")
    for name, runs in found.items():
        shares = [run["transfer_cpu_s_per_million"] / run["elasticsearch_cpu_s_per_million"] for run in runs
                  if "transfer_cpu_s_per_million" in run]
        if shares:
            print(f"{'CPU':36}{name:24}{'Elasticsearch':32}{statistics.median(shares):<8.3f}below 0.15")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000, help="of a run to Kafka; the others have a quarter")
    parser.add_argument("--files", type=int, default=1, help="that hold the lines of a run to Kafka; the lines of one file are in one partition")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), type=lambda text: text.split(","))
    parser.add_argument("--only", type=lambda text: text.split(","), help="runs whose names hold one of these words")
    parser.add_argument("--folder", help="where files and data are made, some GB")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bin", type=Path, default=Path(__file__).resolve().parent.parent.parent / "target/release")
    args = parser.parse_args()
    args.bin = args.bin.resolve()
    # Ended from outside, it ends what it started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def note(name, figures):
        told = {key: round(value, 2) for key, value in figures.items()}
        print(time.strftime("%H:%M:%S"), f"load {os.getloadavg()[0]:.1f}", name, told, file=sys.stderr, flush=True)

    found = {}
    for part in args.parts:
        found |= PARTS[part](args, note)
    print(f"{args.lines} lines of 222 bytes, {os.cpu_count()} cores, load now {os.getloadavg()[0]:.1f}")
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
