"""Embedded: file to searchable in one process."""

import subprocess
import tempfile
import time
from pathlib import Path

from lines import generate
from mesh import cpu, machine_cpu
from standalone import Standalone

WARM_UP = 20_000


def one(args, lines):
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        generate(folder / "warm-up", 0, WARM_UP)
        generate(folder / "lines", WARM_UP, lines)
        mesh = Standalone(str(args.bin / "logmesh"), folder, f"{folder}/logs/*.log")
        try:
            put(folder, "warm-up", mesh, WARM_UP)
            before, all_cpu, begin = cpu(mesh.process.pid), machine_cpu(), time.monotonic()
            put(folder, "lines", mesh, WARM_UP + lines)
            took = time.monotonic() - begin
            used = cpu(mesh.process.pid) - before
            others = (machine_cpu() - all_cpu - used) / took
            audit = subprocess.run([mesh.binary, "audit", "--server", mesh.server], capture_output=True, text=True, check=False)
            if (there := mesh.count("*")) != WARM_UP + lines or audit.returncode:
                raise SystemExit(f"standalone: {there} of {WARM_UP + lines} lines are there; {audit.stdout[-500:]}")
            return {"lines_per_s": lines / took, "seconds": took, "standalone_cpu_s_per_million": used / lines * 1e6,
                    "others_cpu": others, "peak_rss_mb": mesh.memory()["VmHWM"]}
        finally:
            mesh.stop()


def put(folder, part, mesh, lines):
    (folder / part).rename(folder / f"logs/{part}.log")
    while mesh.count("*") < lines:
        time.sleep(0.1)


def run(args, note):
    if args.only and not any(word in "standalone" for word in args.only):
        return {}
    runs = []
    for _ in range(args.rounds):
        runs.append(one(args, args.lines // 4))
        note("standalone", runs[-1])
    return {"standalone": runs}
