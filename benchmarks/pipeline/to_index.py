"""Kafka to Elasticsearch: transfer beside a raw replay of the bulk bodies that it sends, with their ids and without."""

import http.client
import http.server
import json
import os
import re
import shutil
import socketserver
import threading
import time

from lines import generate
from mesh import Mesh, http as call, machine_cpu
from turns import take_turns

# Requests side by side: as many as transfer has at most (`transfer.bulk_requests`).
CONCURRENCY = 2
# A run's figures begin when this part of it is in the index: what comes before is joining a group, and connecting.
BEGIN = 0.05
ID = re.compile(rb',"_id":"[^"]*"')
KINDS = ("events", "chunks")


class Recorder(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Passes requests on to Elasticsearch, and keeps the bulk bodies."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Passing)
        self.target, self.bodies = port, []

    def handle_error(self, *_):
        """A client that gave up waiting asks again."""


class Passing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        link = http.client.HTTPConnection("127.0.0.1", self.server.target)
        kept = {name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")}
        link.request(self.command, self.path, body, kept)
        answer = link.getresponse()
        data = answer.read()
        link.close()
        if "_bulk" in self.path:
            self.server.bodies.append((self.path, body))
        self.send_response(answer.status)
        # Elasticsearch is known by one of its headers.
        for name, value in answer.getheaders():
            if name.lower() in ("content-type", "x-elastic-product"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def log_message(self, *_):
        pass


def regroup(bodies):
    """The same documents, each once though one was sent again, in bodies as large as the largest that transfer sent."""
    documents, most = {}, max(body.count(b"\n") for _, body in bodies)
    for _, body in bodies:
        lines = body.splitlines(keepends=True)
        documents |= dict(zip(lines[::2], lines[1::2], strict=True))
    lines = [line for pair in documents.items() for line in pair]
    return [(bodies[0][0], b"".join(lines[at:at + most])) for at in range(0, len(lines), most)]


class ToIndex:
    def __init__(self, args, folder):
        self.args, self.folder, self.lines = args, folder, args.lines // 4
        topics = [(f"{kind}-{number}", kind) for kind in KINDS for number in range(args.rounds + 1)] + [("capture", "events")]
        self.mesh = Mesh(folder, args.bin, "".join(
            f'[topics.named.{name}]\nformat = "{kind}"\n' for name, kind in topics))
        self.url = f"http://127.0.0.1:{self.mesh.port['elasticsearch']}"

    def start(self):
        self.mesh.start_servers()
        for service in ("config", "gateway", "agent"):
            self.mesh.start(service)
        self.mesh.wait(lambda: self.mesh.ctl("rules", "list", at="config").returncode == 0, "config")
        generate(self.folder / "lines", 0, self.lines)
        self.capture()

    def json(self, method, path, body=None):
        return json.loads(call(method, f"{self.url}/{path}", body and json.dumps(body).encode()))

    def fill(self, topic):
        """Brings the lines into the topic; transfer isn't running."""
        acked = "logmesh_gateway_acked_bytes_total"
        end = self.mesh.metric("gateway", acked) + self.lines * 222
        self.mesh.apply(topic, at="config")
        shutil.copyfile(self.folder / "lines", self.folder / f"{topic}.part")
        os.rename(self.folder / f"{topic}.part", self.folder / f"logs/{topic}.log")
        self.mesh.wait(lambda: self.mesh.metric("gateway", acked) >= end, f"{topic} to be filled")
        (self.folder / f"logs/{topic}.log").unlink()

    def indexed(self, topic):
        """Documents that were written to the topic's index."""
        try:
            found = self.json("GET", f"logmesh-{topic}@*/_stats/indexing?filter_path=_all.primaries.indexing.index_total")
        except OSError:
            return 0
        return found.get("_all", {}).get("primaries", {}).get("indexing", {}).get("index_total", 0)

    def capture(self):
        """Transfer's bulk bodies, and the index that it makes; it warms Elasticsearch up as well."""
        self.fill("capture")
        recorder = Recorder(self.mesh.port["elasticsearch"])
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        text = (self.folder / "mesh.toml").read_text()
        (self.folder / "recorded.toml").write_text(text.replace(self.url, f"http://127.0.0.1:{recorder.server_address[1]}"))
        self.mesh.start("transfer", settings="recorded.toml")
        self.mesh.wait(lambda: self.indexed("capture") >= self.lines, "the capture")
        self.mesh.stop("transfer")
        recorder.shutdown()
        self.check("capture")
        self.bodies = regroup(recorder.bodies)
        (self.index, made), = self.json("GET", "logmesh-capture@*").items()
        settings = made["settings"]["index"]
        for name in ("uuid", "creation_date", "provided_name", "version"):
            settings.pop(name, None)
        self.made = made

    def check(self, topic):
        """Every line is in the index once, or there is no figure."""
        call("POST", f"{self.url}/logmesh-{topic}@*/_refresh")
        body = {"size": 0, "track_total_hits": True, "aggs": {
            "bytes": {"sum": {"field": "logmesh.length"}}, "last": {"max": {"field": "logmesh.offset"}}}}
        found = self.json("POST", f"logmesh-{topic}@*/_search", body)
        count, size = found["hits"]["total"]["value"], found["aggregations"]["bytes"]["value"]
        last = found["aggregations"]["last"]["value"]
        if (count, size, last) != (self.lines, self.lines * 222, (self.lines - 1) * 222):
            raise SystemExit(f"{topic}: {count} documents of {size:.0f} bytes are in the index, not {self.lines}")

    def measure(self, topic, start, names):
        """From a twentieth to the whole."""
        self.mesh.settle("kafka", "elasticsearch", "gateway", "agent")
        start()
        first = self.mesh.wait(lambda: (now := self.indexed(topic)) >= self.lines * BEGIN and now, topic, step=0.02)
        cpu, all_cpu, begin = {name: self.mesh.cpu(name) for name in names}, machine_cpu(), time.monotonic()
        self.mesh.wait(lambda: self.indexed(topic) >= self.lines, topic, step=0.02)
        took = time.monotonic() - begin
        used = {name: self.mesh.cpu(name) - cpu[name] for name in names}
        lines = self.lines - first
        others = (machine_cpu() - all_cpu - sum(used.values())) / took
        figures = {"lines_per_s": lines / took, "seconds": took, "others_cpu": others}
        return figures | {f"{name}_cpu_s_per_million": seconds / lines * 1e6 for name, seconds in used.items()}

    def finish(self, topic, figures):
        self.check(topic)
        size = self.json("GET", f"logmesh-{topic}@*/_stats/store?filter_path=_all.primaries.store.size_in_bytes")
        figures["index_bytes_per_line"] = size["_all"]["primaries"]["store"]["size_in_bytes"] / self.lines
        for index in self.json("GET", f"logmesh-{topic}@*"):
            call("DELETE", f"{self.url}/{index}")
        return figures

    def transfer(self, kind, number):
        topic = f"{kind}-{number}"
        self.fill(topic)
        try:
            figures = self.measure(topic, lambda: self.mesh.start("transfer"), ("transfer", "elasticsearch", "kafka"))
        finally:
            if "transfer" in self.mesh.processes:
                self.mesh.stop("transfer")
        return self.finish(topic, figures)

    def replay(self, kind, number):
        """The captured bodies into an index of the same making. Its name is as long as theirs."""
        topic = f"replay{number}" if kind else f"noids-{number}"
        topic = f"{topic:x<7}"[:7]
        old, new = b"logmesh-capture@", f"logmesh-{topic}@".encode()
        bodies = [(path, body.replace(old, new)) for path, body in self.bodies]
        if not kind:
            bodies = [(path, ID.sub(b"", body)) for path, body in bodies]
        made = json.dumps(self.made).encode().replace(old, new)
        call("PUT", f"{self.url}/{self.index.replace('capture', topic)}", made)
        failures, queue = [], iter(bodies)
        lock = threading.Lock()

        def send():
            link = http.client.HTTPConnection("127.0.0.1", self.mesh.port["elasticsearch"])
            while True:
                with lock:
                    path, body = next(queue, (None, None))
                if not path:
                    return
                link.request("POST", path, body, {"content-type": "application/x-ndjson"})
                answer = link.getresponse()
                data = answer.read()
                if answer.status != 200 or b'"error"' in data:
                    failures.append(data[:300])

        threads = [threading.Thread(target=send) for _ in range(CONCURRENCY)]
        figures = self.measure(topic, lambda: [thread.start() for thread in threads], ("elasticsearch", "kafka"))
        for thread in threads:
            thread.join()
        if failures:
            raise SystemExit(f"{topic}: {failures[0]}")
        return self.finish(topic, figures)


def run(args, note):
    kinds = {"transfer, events": ("transfer", "events"), "raw replay": ("replay", "ids"),
             "transfer, chunks": ("transfer", "chunks"), "raw replay without ids": ("replay", "")}
    return take_turns(ToIndex, kinds, args, note)
