"""The processes of a fault run: one Redis, schedulers and workers, each of which may be killed, frozen and
started anew. Half of them reach Redis through a line that the adversary can cut; the schedulers among these are
reached through such a line, too, each through its own."""
import mmap
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import lib_pseg as lib  # noqa: E402

import proxy  # noqa: E402
import resp  # noqa: E402

QUEUE = "fault"
PREFIX = "pseg:{%s}:" % QUEUE
# The worker of a job, out of its packed state (proto/KEYS.md).
WORKER_OF = """local state = redis.call('HGET', KEYS[1], 'state')
return state and (select(10, struct.unpack('<BBHI4I4ddddHc0', state))) or ''"""
# The worker of a run of a pack, which begins with the item ARGV[1], and the items that run in it still.
RUN_OF = """local run, map = unpack(redis.call('HMGET', KEYS[1], 'r' .. ARGV[1], 'map'))
if not run or not map then return {''} end
local n, from, out = (#map - 1) / 2, tonumber(ARGV[1], 16), {(select(4, struct.unpack('<BddHc0', run)))}
for i = from, n - 1 do
    if string.sub(map, i + 1, i + 1) == 'R' and string.byte(map, n + i + 1) == from then out[#out + 1] = i end
end
return out"""


def ask(connect, *words):
    """A command on a connection of its own; None if there is no answer."""
    try:
        r = connect()
    except OSError:
        return None
    try:
        return r(*words)
    except (OSError, resp.Refused):
        return None
    finally:
        r.close()


class Member:
    """A place for a scheduler or a worker: the process in it comes and goes."""

    def __init__(self, cluster, name, args, ready):
        self.cluster, self.name, self.args, self.ready = cluster, name, args, ready
        self.process, self.target, self.frozen, self.lock = None, None, False, threading.Lock()
        self.door, self.order = None, None

    def start(self, wait=True):
        self.ready.unlink(missing_ok=True)
        self.process = self.cluster.start_process(self.name, self.args, ready=self.ready)
        if wait:
            self.target = self.process.wait_ready()

    def give_order(self, word):
        """To the device of a worker that stands behind broken_cl.c; it takes the file away when it obeys."""
        whole = self.order.with_suffix(".new")
        whole.write_text(word)
        whole.rename(self.order)

    def take_order_back(self):
        """False if it has been obeyed meanwhile."""
        try:
            self.order.unlink()
            return True
        except FileNotFoundError:
            return False

    def is_up(self):
        return self.process is not None and self.process.child.poll() is None

    def signal(self, number):
        if self.is_up():
            self.process.signal(number)


class Cluster(lib.Cluster):
    """lease_ms is the workers' and the schedulers'; the rest of the options are the defaults."""

    def __init__(self, history, lease_ms, fsync="always"):
        super().__init__()
        self.history, self.lease_ms, self.fsync = history, lease_ms, fsync
        self.redis_env, self.clock, self.ahead_s, self.most_ahead_s = None, None, 0.0, 0.0
        self.line = None
        self.schedulers, self.workers = [], []

    def start_process(self, name, args, **kw):
        return self._start(name, args, **kw)

    def use_clock(self, library):
        """Before the start: Redis' wall clock is ours to set, through tests/support/clock_jump.c."""
        file = self.folder / "clock"
        file.write_bytes(bytes(8))
        with open(file, "r+b") as f:
            self.clock = mmap.mmap(f.fileno(), 8)
        self.redis_env = {"LD_PRELOAD": str(pathlib.Path(library).resolve()), "PSEG_TEST_CLOCK": str(file)}

    def jump(self, seconds):
        """Redis' clock, from now on; ahead_s is how far it is from ours, most_ahead_s how far it has been."""
        self.ahead_s += seconds
        self.most_ahead_s = max(self.most_ahead_s, self.ahead_s)
        self.clock[:] = struct.pack("=q", int(self.ahead_s * 1e6))

    def start_redis(self):
        """Also after a kill, with what its log holds."""
        self.socket.unlink(missing_ok=True)
        self.redis = self._start("redis", ["redis-server", "--port", 0, "--unixsocket", self.socket, "--dir",
                                           self.folder, "--appendonly", "yes", "--appendfsync", self.fsync,
                                           "--save", "", "--maxmemory-policy", "noeviction", *REWRITE],
                                 env=self.redis_env)

        def answers():
            if self.redis.child.poll() is not None:
                raise AssertionError("redis ended at its start:\n" + self.redis.log()[-1500:])
            return self.ask("PING") == "PONG"
        lib.until("redis", answers)
        if self.line is None:
            self.line = proxy.Proxy(self.folder / "line.sock", self.socket)

    def redis_url(self, through_line):
        return f"unix:{self.folder / 'line.sock' if through_line else self.socket}"

    def mastership(self):
        """Who is asked, and what is another whenever it is somebody else."""
        return None, ()

    def connect(self, timeout_s=5):
        return resp.Redis(self.socket, timeout_s)

    def ask(self, *words):
        return ask(self.connect, *words)

    def add(self, kind, tenants_file=None, model="empty", through_line=False, extra=(), broken_cl=None):
        """broken_cl: the library of broken_cl.c, for a worker whose device is to break when it is told to."""
        members = self.schedulers if kind == "scheduler" else self.workers
        name = f"{kind}{len(members) + 1}"
        ready = self.folder / f"{name}.ready"
        order = self.folder / f"{name}.order"
        env = ["env", f"LD_PRELOAD={pathlib.Path(broken_cl).resolve()}", f"PSEG_TEST_BROKEN_CL={order}"] \
            if broken_cl else []
        args = [*env, lib.BIN / f"pseg-{kind}", "--redis", self.redis_url(through_line), "--queue", QUEUE,
                "--lease-ms", self.lease_ms, "--ready-file", ready, *extra]
        if kind == "scheduler":
            args += ["--listen", f"unix:{self.folder / name}.sock", "--default-model", "empty"]
            if tenants_file:
                args += ["--keys", tenants_file]
        else:
            args += ["--model", model]
        member = Member(self, name, args, ready)
        member.line = through_line
        member.order = order if broken_cl else None
        member.model = model
        member.start()
        members.append(member)
        if kind == "scheduler" and through_line:
            member.door = proxy.Proxy(self.folder / f"{name}.door", self.folder / f"{name}.sock")
            member.target = f"unix:{self.folder / name}.door"
        return member

    def held_by(self, worker):
        """The jobs that a worker holds now; the caller has frozen it. None: Redis does not tell."""
        id_ = worker.ready.read_text() if worker.ready.exists() else ""
        try:
            r = self.connect(timeout_s=1)
            try:
                jobs = []
                for member in r("ZRANGE", PREFIX + "leases", 0, -1):
                    if "+" in member:
                        worker, *items = r("EVAL", RUN_OF, 1, f"{PREFIX}pack:{member[:30]}", member[30:32])
                        jobs += [f"{member[:30]}{i:02x}" for i in items] if worker == id_ else []
                    elif r("EVAL", WORKER_OF, 1, f"{PREFIX}job:{member}") == id_:
                        jobs.append(member)
                return jobs
            finally:
                r.close()
        except (OSError, resp.Refused):
            return None

    def close(self, show=False):
        if self.line:
            self.line.close()
            self.line = None
        for m in self.schedulers:
            if m.door:
                m.door.close()
                m.door = None
        super().close(show)


def has(tool):
    return shutil.which(tool) is not None


def set_limit(pid, limit):
    """The largest file that a process may write, of a process that runs."""
    subprocess.run(["prlimit", "--pid", str(pid), f"--fsize={limit}"], check=True)


SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "thaw": signal.SIGCONT, "term": signal.SIGTERM}
# Of Redis' log: a server that is killed again and again reads all of it each time. Its default is 64 MB.
REWRITE = ("--auto-aof-rewrite-min-size", "4mb")
