"""What the benchmarks of a whole mesh share: servers from `backends/` and logmesh's processes, each on a free port and in a
temporary folder, and what they take of the machine. Everything that is started is ended by its own id."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
SERVERS = {"kafka": "Kafka Server started", "etcd": "ready to serve", "elasticsearch": " ready on "}


def free_port():
    """A port with a free one after it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
                return port
            except (OSError, OverflowError):
                continue


def cpu(pid):
    """CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def machine_cpu():
    """CPU seconds that all processes have taken."""
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + soft) / TICKS


def http(method, url, body=None):
    kind = "application/x-ndjson" if url.split("?")[0].endswith("_bulk") else "application/json"
    request = urllib.request.Request(url, data=body, method=method, headers={"content-type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


class Mesh:
    def __init__(self, folder, binaries, settings=""):
        self.folder, self.binaries, self.processes = folder, binaries, {}
        names = ("etcd", "kafka", "elasticsearch", "config", "gateway", "transfer", "console", "agent")
        self.port = {name: free_port() for name in names}
        (folder / "logs").mkdir()
        (folder / "mesh.toml").write_text(
            f'config_servers = ["127.0.0.1:{self.port["config"]}"]\n'
            f'[etcd]\nendpoints = ["127.0.0.1:{self.port["etcd"]}"]\n'
            f'[kafka]\nbrokers = ["127.0.0.1:{self.port["kafka"]}"]\n'
            f'[elasticsearch]\nurls = ["http://127.0.0.1:{self.port["elasticsearch"]}"]\nreplicas = 0\n{settings}')

    def log(self, name):
        return self.folder / f"{name}.log"

    def spawn(self, name, command, **env):
        with open(self.log(name), "ab") as log:
            process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env={**os.environ, **env}, start_new_session=True)
        self.processes[name] = process
        return process

    def start_servers(self, *names):
        """Starts these, or all, and waits for them."""
        names, port = names or tuple(SERVERS), {name: str(self.port[name]) for name in self.port}
        # The scripts' own flags suit short tests: a figure wants the full compiler and room.
        env = {"kafka": {"KAFKA_PORT": port["kafka"], "KAFKA_DATA": str(self.folder / "kafka")},
               "etcd": {"ETCD_PORT": port["etcd"], "ETCD_DATA": str(self.folder / "etcd"), "ETCD_LOG_LEVEL": "info"},
               "elasticsearch": {"ES_PORT": port["elasticsearch"], "ES_HEAP": "1g", "ES_DATA": str(self.folder / "es"),
                                 "ES_JAVA_OPTS": "-XX:TieredStopAtLevel=4"}}
        for name in names:
            self.spawn(name, [ROOT / "backends" / name / "run"], **env[name])
        for name in names:
            self.wait(lambda: SERVERS[name] in self.log(name).read_text(errors="replace"), name)

    def start(self, name, settings="mesh.toml", **env):
        if name == "agent":
            env.setdefault("LOGMESH_LISTEN_ADMIN", f"127.0.0.1:{self.port['agent']}")
            return self.spawn("agent", [self.binaries / "logmesh-agent", "--server", f"127.0.0.1:{self.port['config']}",
                                        "--state-dir", self.folder / "agent", "--allow", f"{self.folder}/logs/**"], **env)
        port = self.port[name]
        return self.spawn(name, [self.binaries / "logmesh", name, "--config", self.folder / settings,
                                 "--listen", f"127.0.0.1:{port}", "--listen-admin", f"127.0.0.1:{port + 1}"], **env)

    def stop(self, name):
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def end(self):
        for name in reversed(list(self.processes)):
            self.stop(name)

    def wait(self, condition, what, seconds=600, step=0.05):
        end = time.monotonic() + seconds
        while not (found := condition()):
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended: {self.log(name).read_text(errors='replace')[-2000:]}")
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds} s for {what}")
            time.sleep(step)
        return found

    def cpu(self, *names):
        return sum(cpu(self.processes[name].pid) for name in names)

    def settle(self, *names):
        """Waits until these processes do next to nothing, for a minute at most: what a run leaves behind isn't the next one's."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            before = self.cpu(*names)
            time.sleep(0.5)
            if self.cpu(*names) - before < 0.05:
                return

    def metric(self, name, metric):
        """The sum of a metric over its labels, 0 while it isn't there."""
        port = self.port[name] + (name != "agent")
        lines = http("GET", f"http://127.0.0.1:{port}/metrics").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((metric + " ", metric + "{")))

    def ctl(self, *args, at="console"):
        command = [self.binaries / "logmesh", "--server", f"127.0.0.1:{self.port[at]}", *args]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)

    def count(self, query):
        answer = self.ctl("search", query, "--since", "24h", "--count")
        return int(answer.stdout) if answer.returncode == 0 else 0

    def acked(self, path):
        """Bytes of a file that the agent has seen acked."""
        agents = [json.loads(line) for line in self.ctl("agents", "list", "--json").stdout.splitlines()]
        if not agents:
            return 0
        streams = json.loads(self.ctl("agents", "get", agents[0]["id"], "--json").stdout)["streams"]
        return max((stream["acked_offset"] for stream in streams if stream["path"] == str(path)), default=0)

    def apply(self, name, at="console"):
        """A rule for the files whose names begin so, into the topic of that name."""
        rule = self.folder / f"{name}.yaml"
        rule.write_text(f'name: rules/{name}\npaths: ["{self.folder}/logs/{name}*.log"]\ntopic: {name}\n')
        done = self.ctl("rules", "apply", "-f", rule, at=at)
        assert done.returncode == 0, done.stderr

    def memory(self):
        sizes = {}
        for name, process in self.processes.items():
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            sizes[name] = {"peak_mb": int(fields["VmHWM"].split()[0]) // 1024, "now_mb": int(fields["VmRSS"].split()[0]) // 1024}
        return sizes
