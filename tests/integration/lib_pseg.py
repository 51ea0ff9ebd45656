"""What the api_*_test.py share: real processes of their own, and a client that nobody here wrote.

    python3 api_x_test.py BIN DESCRIPTORS      (both from the build; run in the source's root)

The messages come from the FileDescriptorSet that protoc made, the calls from python3-grpcio. Every
process started here dies with the test (setpriv --pdeathsig), listens on a free loopback port or a unix
socket, and every wait is a poll with a deadline. Exit status 77: a part is missing."""
import collections
import contextlib
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
try:
    import grpc
    import numpy  # noqa: F401  (the tests use it)
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)
for tool in ("redis-server", "redis-cli", "setpriv"):
    if not shutil.which(tool):
        print(f"skipped: no {tool}")
        sys.exit(77)

BIN, DESCRIPTORS = pathlib.Path(sys.argv[1]), sys.argv[2]
SCENE = pathlib.Path("docs/example/scene.png").read_bytes()  # 224 x 224
SERVICE = "pseg.v1.SegmentationService"
SLOWER = int(os.environ.get("TEST_SLOWER", 1))  # that tests/support/under.py makes everything
START_S = 60 * SLOWER  # for a process to be ready, on a slow machine under sanitizers
CALL_S = 30 * SLOWER
# How long connecting may take; 20 s by itself.
SLOW_TO_CONNECT = [("grpc.min_reconnect_backoff_ms", 20000 * SLOWER)] if SLOWER > 1 else []

POOL = descriptor_pool.DescriptorPool()
METHODS = {}  # service -> method -> its descriptor
with open(DESCRIPTORS, "rb") as f:
    for file in descriptor_pb2.FileDescriptorSet.FromString(f.read()).file:
        POOL.Add(file)
        for service in file.service:
            METHODS[f"{file.package}.{service.name}"] = {m.name: m for m in service.method}


def message(name):
    d = POOL.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(d)
    return message_factory.MessageFactory(POOL).GetPrototype(d)


class Messages:
    """pb.JobSpec is the class of pseg.v1.JobSpec, pb.STATE_QUEUED a number."""

    def __getattr__(self, name):
        for enum in ("State", "MaskEncoding"):
            values = POOL.FindEnumTypeByName(f"pseg.v1.{enum}").values_by_name
            if name in values:
                return values[name].number
        found = message(f"pseg.v1.{name}")
        setattr(self, name, found)
        return found


pb = Messages()


class Stub:
    """stub.GetJob(request, timeout=...): one callable for each method of a service."""

    def __init__(self, channel, service=SERVICE):
        for name, m in METHODS[service].items():
            kind = ("stream" if m.client_streaming else "unary") + "_" + ("stream" if m.server_streaming else "unary")
            call = getattr(channel, kind)(f"/{service}/{name}", message(m.input_type[1:]).SerializeToString,
                                          message(m.output_type[1:]).FromString)
            setattr(self, name, call)


class Failure:
    """A failed call, its google.rpc.Status taken apart. Checks what is promised of every one."""

    def __init__(self, error):
        self.code, self.message = error.code(), error.details()
        found = {}
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                self.status = message("google.rpc.Status").FromString(value)
                for any_ in self.status.details:
                    name = any_.type_url.split("/")[-1]
                    found[name] = message(name).FromString(any_.value)
        assert found, f"no google.rpc.Status: {error!r}"
        info = found["google.rpc.ErrorInfo"]
        self.reason, self.metadata = info.reason, dict(info.metadata)
        self.fields = [v.field for v in found["google.rpc.BadRequest"].field_violations] \
            if "google.rpc.BadRequest" in found else []
        self.resource = found.get("google.rpc.ResourceInfo")
        retry = found.get("google.rpc.RetryInfo")
        self.retry_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry else None
        assert info.domain == "pseg", info
        assert (self.status.code, self.status.message) == (self.code.value[0], self.message), self.status
        assert self.message and "\n" not in self.message and len(self.message.encode()) < 320, self.message

    def __repr__(self):
        return f"{self.reason} {self.code} {self.fields} {self.metadata}: {self.message}"


def failure(call, *args, **kw):
    """The Failure that call(*args) must end with; replies that stream are read to the end."""
    kw.setdefault("timeout", CALL_S)
    try:
        reply = call(*args, **kw)
        if hasattr(reply, "__next__"):
            reply = list(reply)
    except grpc.RpcError as e:
        return Failure(e)
    raise AssertionError(f"the call did not fail but gave {reply}")


def timely(call, request, timeouts=(0.3, 0.3, 0.6, 1.2, 2.4)):
    """The reply of a call that must be answered before a short deadline, and the deadline. On a machine
    with more to do than processors another try gets more time; that none is in time is a fault."""
    for timeout in (t * SLOWER for t in timeouts):
        try:
            return call(request, timeout=timeout), timeout
        except grpc.RpcError as e:
            if e.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                raise
    raise AssertionError(f"never answered in time: {timeouts}")


def until(what, check, seconds=START_S):
    """Polls check() until it is true; its value."""
    seconds *= SLOWER
    end, tick = time.monotonic() + seconds, threading.Event()
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        tick.wait(0.02)


class Process:
    """A child whose standard error goes to a file; .log() is what it said."""

    def __init__(self, folder, name, args, ready=None, env=None):
        self.path = folder / f"{name}.log"
        self.name, self.ready = name, ready
        with open(self.path, "ab") as out:
            # Not by preexec_fn: Python would fork then, and gRPC's fork handlers may wait for ever.
            self.child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *map(str, args)],
                                          stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env={**os.environ, **(env or {})})

    def log(self):
        return self.path.read_text(errors="replace")

    def wait_ready(self):
        def check():
            if self.child.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.child.returncode}:\n{self.log()[-2000:]}")
            return self.ready.exists() and self.ready.read_text()
        return until(f"{self.name} getting ready", check)

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, seconds=CALL_S):
        return self.child.wait(seconds)

    def stop(self, seconds=CALL_S):
        """SIGTERM; gives the exit status."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self):
        if self.child.poll() is None:
            self.signal(signal.SIGKILL)
            self.child.wait()


class Cluster:
    """A Redis, and schedulers and workers on it; a context manager."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pseg-api-"))
        self.processes, self.channels, self.count = [], [], 0

    def __enter__(self):
        self.start_redis()
        return self

    def __exit__(self, kind, value, trace):
        self.close(show=kind is not None)

    def close(self, show=False):
        for channel in self.channels:
            channel.close()
        for p in reversed(self.processes):
            p.kill()
        for p in self.processes:
            text = p.log()
            faulty = "Sanitizer" in text or "runtime error:" in text
            if show or faulty:
                print(f"== {p.name}\n{text[-3000:]}", file=sys.stderr)
            assert not faulty, p.name
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name, args, **kw):
        p = Process(self.folder, name, args, **kw)
        self.processes.append(p)
        return p

    @property
    def socket(self):
        return self.folder / "redis.sock"

    def start_redis(self):
        """Also after a kill: what was stored is there again, for the kernel has it already."""
        self.socket.unlink(missing_ok=True)
        self.redis = self._start("redis", ["redis-server", "--port", 0, "--unixsocket", self.socket, "--dir",
                                           self.folder, "--appendonly", "yes", "--appendfsync", "no",
                                           "--save", ""])
        until("redis", lambda: self.redis_cli("ping") == "PONG")

    def redis_cli(self, *args):
        return subprocess.run(["redis-cli", "-s", str(self.socket), *map(str, args)], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, check=False).stdout.strip()

    def fcall(self, name, *args):
        """One of the queue's own functions: the test as a worker."""
        return self.redis_cli("FCALL", f"pseg1_{name}", 1, "pseg:{default}:", *args)

    @contextlib.contextmanager
    def count_calls(self):
        """How often each function of the library is called meanwhile, by name without its prefix; filled at the end."""
        found = collections.Counter()
        self.redis_cli("CONFIG", "SET", "slowlog-max-len", 100000, "slowlog-log-slower-than", 0)
        self.redis_cli("SLOWLOG", "RESET")
        yield found
        self.redis_cli("CONFIG", "SET", "slowlog-log-slower-than", -1)
        told = subprocess.run(["redis-cli", "-s", str(self.socket), "SLOWLOG", "GET", "100000"],
                              stdout=subprocess.PIPE, check=True).stdout
        found.update(w.decode()[6:] for w in told.split() if w.startswith(b"pseg1_") and w.isascii())

    def claim(self, name, lease_ms=600000):
        """Takes one job of the empty model, which must be `name`, and keeps it running for long."""
        said = self.fcall("claim", "hand", "empty", 1, lease_ms, 3)
        assert said.splitlines()[:1] == [name[5:]], (said, name)

    def scheduler(self, *args, listen="127.0.0.1:0", wait=True):
        self.count += 1
        name = f"scheduler{self.count}"
        ready = self.folder / f"{name}.ready"
        p = self._start(name, [BIN / "pseg-scheduler", "--redis", f"unix:{self.socket}", "--listen", listen,
                               "--lease-ms", "2s", "--ready-file", ready, *args], ready=ready)
        if wait:
            p.target = p.wait_ready()
        return p

    def worker(self, model="empty", *args):
        self.count += 1
        name = f"worker{self.count}"
        ready = self.folder / f"{name}.ready"
        p = self._start(name, [BIN / "pseg-worker", "--redis", f"unix:{self.socket}", "--model", model,
                               "--lease-ms", "2s", "--ready-file", ready, *args], ready=ready)
        p.wait_ready()
        return p

    def channel(self, scheduler, credentials=None, options=()):
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1),
                   ("grpc.enable_retries", 0), *SLOW_TO_CONNECT, *options]
        c = grpc.secure_channel(scheduler.target, credentials, options) if credentials \
            else grpc.insecure_channel(scheduler.target, options)
        self.channels.append(c)
        return c

    def stub(self, scheduler, service=SERVICE, **kw):
        return Stub(self.channel(scheduler, **kw), service)


def png(width, height, seed=0):
    """A PNG of coarse noise, about a byte for 4 pixels: no two seeds give the same."""
    rows = numpy.random.default_rng(seed).integers(0, 2, (height, width), dtype=numpy.uint8)
    rows = numpy.repeat(rows * 200, 3, axis=1)
    return png_of(width, height, b"".join(b"\0" + row.tobytes() for row in rows))


def png_of(width, height, raw):
    """raw: the rows of RGB, each with its filter's byte before it."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(raw, 6)) + chunk(b"IEND", b"")


def spec(image=SCENE, phrases=("the small red circle",), **kw):
    """A JobSpec; image: bytes, or the SHA-256 of an uploaded one."""
    kw["sha256" if isinstance(image, str) else "content"] = image
    return pb.JobSpec(prompts=[pb.Prompt(text=p) for p in phrases], **kw)


def create(stub, image=SCENE, phrases=("the small red circle",), request_id="", **kw):
    return stub.CreateJob(pb.CreateJobRequest(request_id=request_id, job=spec(image, phrases, **kw)), timeout=CALL_S)


def wait(stub, name, seconds=START_S):
    """The job at its end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = stub.WaitJob(pb.WaitJobRequest(name=name), timeout=10)
        if job.state >= pb.STATE_SUCCEEDED:
            return job
    raise AssertionError(f"{name} is not done within {seconds} s but {job.state}")


class Test(unittest.TestCase):
    """A cluster of the class's own; set `setup` to start what the tests need in it."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(lambda: cls.cluster.close())
        try:
            cls.cluster.__enter__()
            cls.setup(cls.cluster)
        except BaseException:
            cls.cluster.close(show=True)
            raise

    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler()
        cls.stub = cluster.stub(cls.scheduler)

    def assertFails(self, found, code, reason, field=None):
        self.assertEqual((found.code.name, found.reason), (code, reason), found)
        if field is not None:
            self.assertEqual(found.fields, [field], found)
        return found


def main():
    """Ends the program: with 1 if a test failed, with 77, which CTest counts, if one could not run."""
    began = time.monotonic()
    program = unittest.main(argv=sys.argv[:1], verbosity=2, exit=False)
    print(f"{program.result.testsRun} tests in {time.monotonic() - began:.1f} s")
    sys.exit(1 if not program.result.wasSuccessful() else 77 if program.result.skipped else 0)
