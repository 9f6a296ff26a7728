"""File to Kafka: agent and gateway beside rsyslog and Kafka's own producer, on the same lines and the same broker."""

import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import time

from lines import LINE_BYTES, Seen, generate
from mesh import ROOT, Mesh, machine_cpu
from turns import take_turns

PARTITIONS = 4
WARM_UP = 100_000
TOOL = [str(ROOT / "backends/kafka/run"), "tool"]
# Much is on its way at a time, as is known to be good for rsyslog; as durable and as packed as what the gateway writes.
RSYSLOG = """
global(workDirectory="{folder}" maxMessageSize="64k")
module(load="imfile" mode="inotify")
module(load="omkafka")
template(name="raw" type="string" string="%msg%")
template(name="json" type="list" option.jsonf="on") {{
  property(outname="@timestamp" name="timegenerated" dateFormat="rfc3339" format="jsonf")
  property(outname="message" name="msg" format="jsonf")
  property(outname="log.file.path" name="$!metadata!filename" format="jsonf")
  property(outname="log.offset" name="$!metadata!fileoffset" format="jsonf")
  property(outname="host.name" name="hostname" format="jsonf")
}}
input(type="imfile" File="{glob}" Tag="bench" ruleset="out" addMetadata="{metadata}")
ruleset(name="out" {queue}) {{
  action(type="omkafka" broker=["{broker}"] topic="{topic}" template="{template}" partitions.auto="on"
    action.resumeRetryCount="-1" resubmitOnFailure="on" {producer})
}}
"""
TUNED = {
    "queue": 'queue.type="LinkedList" queue.size="200000" queue.dequeueBatchSize="4096" queue.workerThreads="1"',
    "producer": 'confParam=["compression.codec=lz4", "acks=all", "queue.buffering.max.messages=500000", "queue.buffering.max.ms=20", '
                '"batch.num.messages=10000"]',
}
# As someone sets it up who sets nothing: what issue 7's figures of rsyslog look like.
BARE = {"queue": "", "producer": ""}


def end_offsets(port, topic):
    """How many records a new topic holds: the ends of its partitions, by Kafka's ListOffsets request."""
    text = lambda value: struct.pack(">h", len(value)) + value.encode()
    body = struct.pack(">hhi", 2, 1, 7) + text("pipeline") + struct.pack(">ii", -1, 1) + text(topic)
    body += struct.pack(">i", PARTITIONS) + b"".join(struct.pack(">iq", number, -1) for number in range(PARTITIONS))
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(struct.pack(">i", len(body)) + body)
        with link.makefile("rb") as answers:
            answer = answers.read(struct.unpack(">i", answers.read(4))[0])
    at = 4 + 4 + 2 + len(topic) + 4  # correlation, count of topics, name, count of partitions
    parts = [struct.unpack_from(">ihqq", answer, at + 22 * number) for number in range(PARTITIONS)]
    if any(error for _, error, _, _ in parts):
        raise OSError(f"ListOffsets: {parts}")
    return sum(offset for _, _, _, offset in parts)


class ToKafka:
    """The broker, and logmesh without transfer."""

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.mesh = Mesh(folder, args.bin, "".join(
            f'[topics.named.{kind}-{number}]\nformat = "{kind}"\npartitions = {PARTITIONS}\n'
            for kind in ("events", "chunks") for number in range(args.rounds + 1)))
        self.files = {}

    def start(self):
        self.mesh.start_servers("kafka", "etcd")
        for service in ("config", "gateway", "agent"):
            self.mesh.start(service)
        self.mesh.wait(lambda: self.mesh.ctl("rules", "list", at="config").returncode == 0, "config")
        generate(self.folder / "warm-up", 0, WARM_UP)
        generate(self.folder / "lines", WARM_UP, self.args.lines)

    def topic(self, name):
        server = f"127.0.0.1:{self.mesh.port['kafka']}"
        subprocess.run([*TOOL, "TopicCommand", "--bootstrap-server", server, "--create", "--topic", name,
                        "--partitions", str(PARTITIONS)], capture_output=True, check=True)

    def copies(self, name):
        """The files of one run, not yet where they are collected: a link would be the same file to those that know its inode."""
        warm_up = self.folder / f"{name}.warm-up"
        shutil.copyfile(self.folder / "warm-up", warm_up)
        paths, step = [], -(-self.args.lines // self.args.files) * LINE_BYTES
        with open(self.folder / "lines", "rb") as lines:
            while data := lines.read(step):
                paths.append(self.folder / f"{name}.{len(paths)}")
                paths[-1].write_bytes(data)
        return warm_up, paths

    def measure(self, name, pids, done):
        """Puts the warm-up there, then all others; `done` says whether so many lines are durable. Wall and CPU of the others."""
        for path in self.folder.glob("logs/*.log"):
            path.unlink()
        warm_up, paths = self.copies(name)
        os.rename(warm_up, self.folder / f"logs/{name}-warm-up.log")
        self.mesh.wait(lambda: done(WARM_UP), f"{name}: its warm-up")
        self.mesh.settle("kafka", "etcd", "gateway", "agent")
        cpu = {part: sum(self.mesh.cpu(one) for one in names) for part, names in pids.items()}
        all_cpu, begin = machine_cpu(), time.monotonic()
        for number, path in enumerate(paths):
            os.rename(path, self.folder / f"logs/{name}-{number}.log")
        self.mesh.wait(lambda: done(WARM_UP + self.args.lines), f"{name}: its lines", step=0.01)
        took = time.monotonic() - begin
        used = {part: sum(self.mesh.cpu(one) for one in names) - cpu[part] for part, names in pids.items()}
        return self.figures(took, used, machine_cpu() - all_cpu)

    def figures(self, took, used, all_cpu):
        millions = self.args.lines / 1e6
        figures = {"lines_per_s": self.args.lines / took, "seconds": took, "others_cpu": (all_cpu - sum(used.values())) / took}
        return figures | {f"{part}_cpu_s_per_million": seconds / millions for part, seconds in used.items()}

    def verify(self, name, first, count):
        """Reads the whole topic: each line is there once, or there is no figure."""
        seen = Seen(first, count)
        command = [*TOOL, "consumer.ConsoleConsumer", "--bootstrap-server", f"127.0.0.1:{self.mesh.port['kafka']}", "--topic", name,
                   "--from-beginning", "--timeout-ms", "5000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
            while data := reader.stdout.read(1 << 22):
                seen.feed(data)
        if seen.missing() or seen.more:
            raise SystemExit(f"{name}: {seen.missing()} of {count} lines are missing, {seen.more} are too many")

    def logmesh(self, kind, number):
        name = f"{kind}-{number}"
        before = self.mesh.metric("gateway", "logmesh_gateway_acked_bytes_total")
        size = lambda lines: before + lines * LINE_BYTES
        self.mesh.apply(name, at="config")
        parts = {"collector": ("agent", "gateway"), "agent": ("agent",), "gateway": ("gateway",), "broker": ("kafka",)}
        figures = self.measure(name, parts, lambda lines: self.mesh.metric("gateway", "logmesh_gateway_acked_bytes_total") >= size(lines))
        figures["others_cpu"] += figures["collector_cpu_s_per_million"] * self.args.lines / 1e6 / figures["seconds"]
        self.verify(name, 0, WARM_UP + self.args.lines)
        return figures

    def rsyslog(self, kind, number):
        name = f"rsyslog-{kind}-{number}"
        self.topic(name)
        config = self.folder / "rsyslog.conf"
        config.write_text(RSYSLOG.format(
            folder=self.folder, glob=f"{self.folder}/logs/{name}*.log", broker=f"127.0.0.1:{self.mesh.port['kafka']}", topic=name,
            template="raw" if kind == "bare" else kind, metadata="on" if kind == "json" else "off",
            **(BARE if kind == "bare" else TUNED)))
        pid = self.folder / "rsyslog.pid"
        pid.unlink(missing_ok=True)
        self.mesh.spawn("rsyslog", [shutil.which("rsyslogd") or "/usr/sbin/rsyslogd", "-n", "-f", config, "-i", pid])
        self.mesh.wait(pid.exists, "rsyslog")
        try:
            figures = self.measure(name, {"collector": ("rsyslog",), "broker": ("kafka",)},
                                   lambda lines: end_offsets(self.mesh.port["kafka"], name) >= lines)
        finally:
            self.mesh.stop("rsyslog")
        self.verify(name, 0, WARM_UP + self.args.lines)
        return figures

    def producer(self, _kind, number):
        """Kafka's own tool, as it reports itself; its CPU is that of the whole process, warm-up and start included."""
        name = f"producer-{number}"
        self.topic(name)
        self.mesh.settle("kafka", "etcd", "gateway", "agent")
        before, broker, all_cpu, begin = children(), self.mesh.cpu("kafka"), machine_cpu(), time.monotonic()
        done = subprocess.run(
            [*TOOL, "ProducerPerformance", "--topic", name, "--num-records", str(WARM_UP + self.args.lines),
             "--warmup-records", str(WARM_UP), "--payload-file", self.folder / "warm-up", "--throughput", "-1",
             "--bootstrap-server", f"127.0.0.1:{self.mesh.port['kafka']}", "--command-property", "acks=all",
             "compression.type=lz4", "linger.ms=20", "batch.size=262144"], capture_output=True, text=True, check=False)
        took, used = time.monotonic() - begin, children() - before
        rates = re.findall(r"([\d.]+) records/sec", done.stdout)
        if not rates or (there := end_offsets(self.mesh.port["kafka"], name)) != WARM_UP + self.args.lines:
            raise SystemExit(f"ProducerPerformance: {there if rates else done.stderr[-500:]}")
        figures = self.figures(took, {"collector": used, "broker": self.mesh.cpu("kafka") - broker}, machine_cpu() - all_cpu)
        return figures | {"lines_per_s": float(rates[-1])}


def children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(args, note):
    """Every kind in turn, round after round."""
    kinds = {"logmesh, events": ("logmesh", "events"), "rsyslog, raw lines": ("rsyslog", "raw"),
             "logmesh, chunks": ("logmesh", "chunks"), "rsyslog, raw, as it comes": ("rsyslog", "bare"),
             "rsyslog, JSON": ("rsyslog", "json"),
             "Kafka's ProducerPerformance": ("producer", "")}
    return take_turns(ToKafka, kinds, args, note)
