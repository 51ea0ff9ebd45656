"""The cluster of a run that fails over: a master, two replicas of it, and three Sentinels that choose another when
it is away for a second. Whoever wants the master asks them, the harness' own connections too."""
import random
import socket

import cluster as c
import resp
from cluster import lib

MASTER = "main"
N_NODES = N_SENTINELS = 3
DOWN_AFTER_MS = 1000
LAG_S = 5  # a master whose replicas have all been silent for so long takes no more writes
WHOLE_S = 120  # for a fail-over, or for a replica to come back, on a slow machine


class Node:
    """A Redis server, or a Sentinel. It keeps its port, for the others know it by that."""

    def __init__(self, cluster, name, is_sentinel=False):
        self.cluster, self.name, self.is_sentinel = cluster, name, is_sentinel
        self.folder = cluster.folder / name
        self.folder.mkdir()
        self.socket = self.folder / "redis.sock"
        self.port = self.process = None

    def start(self, settings=(), wait=True):
        """The first start draws a port, and another one if somebody else was quicker."""
        for _ in range(20):
            port = self.port or free_port()
            self.socket.unlink(missing_ok=True)
            config = self.folder / "node.conf"
            config.write_text("".join(f"{line}\n" for line in (
                f"port {port}", "bind 127.0.0.1", f"unixsocket {self.socket}", f"dir {self.folder}", *settings)))
            self.process = self.cluster.start_process(
                self.name, ["redis-server", config, *(["--sentinel"] if self.is_sentinel else [])])
            if not wait or lib.until(self.name, lambda: self.ask("PING") == "PONG" or not self.is_up()) and self.is_up():
                self.port = port
                return
            assert self.port is None, f"{self.name} ended at its start:\n{self.process.log()[-1500:]}"
        raise AssertionError(f"{self.name} found no port:\n{self.process.log()[-1500:]}")

    def start_server(self, master=None, wait=True):
        self.start([
            "appendonly yes", f"appendfsync {self.cluster.fsync}", 'save ""', "maxmemory-policy noeviction",
            "min-replicas-to-write 1", f"min-replicas-max-lag {LAG_S}", "repl-diskless-sync-delay 0",
            *([f"replicaof 127.0.0.1 {master.port}"] if master else [])], wait)

    def is_up(self):
        return self.process.child.poll() is None

    def connect(self, timeout_s=1):
        return resp.Redis(self.socket, timeout_s)

    def ask(self, *words):
        return c.ask(self.connect, *words)

    def fields(self, *words):
        """An answer of names and values; empty if there is none."""
        found = self.ask(*words)
        return dict(zip(found[::2], found[1::2])) if isinstance(found, list) else {}


def free_port():
    """Below those that the kernel gives to clients: none of them may take a node's port while it is down."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class SentinelCluster(c.Cluster):
    replicas = N_NODES - 1  # that must have a job before it is promised: all, for Sentinels may choose any of them

    def start_redis(self):
        self.nodes = [Node(self, f"node{i + 1}") for i in range(N_NODES)]
        for i, node in enumerate(self.nodes):
            node.start_server(self.nodes[0] if i else None)
        self.sentinels = [Node(self, f"sentinel{i + 1}", is_sentinel=True) for i in range(N_SENTINELS)]
        for s in self.sentinels:
            s.start([f"sentinel monitor {MASTER} 127.0.0.1 {self.nodes[0].port} 2",
                     f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
                     f"sentinel failover-timeout {MASTER} 3000"])
        lib.until("a master with its replicas and Sentinels", self.is_whole, WHOLE_S)

    def redis_url(self, through_line=False):
        ports = ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels)
        return f"redis+sentinel://{ports}/{MASTER}"

    def views(self):
        return [s.fields("SENTINEL", "MASTER", MASTER) for s in self.sentinels]

    def mastership(self):
        """The master that the newest configuration of the Sentinels names, and what is another whenever the master
        is. The Sentinel that leads a fail-over counts the configuration up a while before SENTINEL MASTER has the
        new address, so this is asked for by itself, as clients do it."""
        told = []
        for s in self.sentinels:
            view, address = s.fields("SENTINEL", "MASTER", MASTER), s.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
            if view and address:
                told.append((int(view["config-epoch"]), int(address[1])))
        if not told:
            raise ConnectionError("no Sentinel answers")
        epoch, port = max(told)
        return next(n for n in self.nodes if n.port == port), (epoch, port)

    def connect(self, timeout_s=1):
        return self.mastership()[0].connect(timeout_s)

    def replicas_of(self, node):
        """How many replicas follow a master; -1: it answers as none, or not at all."""
        role = node.ask("ROLE")
        if not role or role[0] != "master":
            return -1
        info = node.ask("INFO", "replication") or ""
        return sum(line.startswith("slave") and "state=online" in line for line in info.splitlines())

    def named(self):
        """The master by the Sentinels; None if none of them answers."""
        try:
            return self.mastership()[0]
        except OSError:
            return None

    def serving(self, away=()):
        """The master, if it has the replicas for a promise. away: servers that are not worth asking."""
        node = self.named()
        return node if node and node not in away and self.replicas_of(node) >= self.replicas else None

    def leave_behind(self, master, behind, ahead):
        """From here on only one replica gets what the master writes, and even that one confirms nothing of it: so
        WAIT is in vain, while the master still counts a replica and goes on."""
        line = behind.ask("CLIENT", "LIST", "TYPE", "master") or ""
        own_end = dict(word.partition("=")[::2] for word in line.split()).get("laddr", "")
        for node in (behind, ahead):
            node.process.signal(c.SIGNALS["freeze"])
        if own_end:
            master.ask("CLIENT", "KILL", "ADDR", own_end)

    def is_whole(self):
        """The master, once both others follow it and each Sentinel is content; else None."""
        views = self.views()
        if any((v.get("flags"), v.get("num-slaves"), v.get("num-other-sentinels")) !=
               ("master", str(N_NODES - 1), str(N_SENTINELS - 1)) for v in views):
            return None
        if len({(v["port"], v["config-epoch"]) for v in views}) != 1:
            return None
        node = next(n for n in self.nodes if n.port == int(views[0]["port"]))
        return node if self.replicas_of(node) == N_NODES - 1 else None
