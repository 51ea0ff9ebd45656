#!/usr/bin/env python3
"""The proxy that deploy/proxy ships, as it is, between clients and a scheduler: the service works through
it, and what libgrpc 1.51 cannot be guarded against ends there."""
import hashlib
import os
import shutil
import socket
import subprocess
import sys

import grpc

import lib_h2 as h2
import lib_pseg as lib
from lib_pseg import pb

for tool in ("haproxy", "openssl"):
    if not shutil.which(tool) and not os.path.exists(f"/usr/sbin/{tool}"):
        print(f"skipped: no {tool}")
        sys.exit(77)

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
CONFIG = "deploy/proxy/haproxy.cfg"
CREATE = f"/{lib.SERVICE}/CreateJob"
HealthRequest = lib.message("grpc.health.v1.HealthCheckRequest")
MIB = 1 << 20
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8"


def usage(process):
    """Resident bytes and processor seconds."""
    pid = process.child.pid
    with open(f"/proc/{pid}/status") as f:
        resident = next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) * 1024
    with open(f"/proc/{pid}/stat") as f:
        times = f.read().rsplit(")", 1)[1].split()[11:13]
    return resident, sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def hung_up(s):
    s.settimeout(20)
    try:
        return s.recv(1) == b""
    except ConnectionResetError:
        return True


BOUND = 16  # connections of one address


class Proxy(lib.Test):
    @classmethod
    def setup(cls, cluster):
        folder = cluster.folder
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                        "-keyout", "proxy.key", "-out", "proxy.crt"], cwd=folder, check=True, capture_output=True)
        (folder / "proxy.pem").write_text((folder / "proxy.crt").read_text() + (folder / "proxy.key").read_text())
        (folder / "keys").write_text(f"{hashlib.sha256(b'sesame').hexdigest()} team\n")
        cls.ca = folder / "proxy.crt"
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--keys", folder / "keys")
        cls.worker = cluster.worker("empty")
        for _ in range(3):  # somebody may take the port between its choice and its use
            if cls.start(cluster):
                break
        else:
            raise AssertionError("haproxy does not start")
        cls.channel = cluster.channel(cls.proxy, credentials=grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(cls.ca.read_bytes()), grpc.access_token_call_credentials("sesame")))
        cls.stub = lib.Stub(cls.channel)

    @classmethod
    def start(cls, cluster):
        port = free_port()
        env = {"PSEG_PROXY_LISTEN": f"127.0.0.1:{port}", "PSEG_PROXY_CERT": str(cluster.folder / "proxy.pem"),
               "PSEG_PROXY_SCHEDULER": cls.scheduler.target, "PSEG_PROXY_OPENING": "1s", "PSEG_PROXY_SILENCE": "2s",
               "PSEG_PROXY_CONNECTIONS": str(BOUND)}
        cls.proxy = cluster._start("haproxy", [HAPROXY, "-db", "-f", CONFIG], env=env)
        cls.proxy.target = f"localhost:{port}"

        def listens():
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return True
            except OSError:
                return cls.proxy.child.poll() is not None
        lib.until("haproxy", listens)
        return cls.proxy.child.poll() is None

    def setUp(self):
        self.works()
        self.resident, self.seconds = usage(self.scheduler)

    def works(self):
        def answered():
            try:
                return self.stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S) is not None
            except grpc.RpcError as e:
                self.assertEqual(e.code(), grpc.StatusCode.UNAVAILABLE)
                return False
        lib.until("the service through the proxy", answered, 20)

    def untouched(self, resident, seconds):
        now = usage(self.scheduler)
        self.assertLess(now[0] - self.resident, resident)
        self.assertLess(now[1] - self.seconds, seconds)

    def connect(self, **kw):
        return h2.Connection(self.proxy.target, ca=self.ca, **kw)

    def headers(self, path, *more):
        return h2.call_headers(path, *more, scheme="https")

    # ---- the service ----

    def test_the_service(self):
        reply = self.stub.Segment(pb.SegmentRequest(job=lib.spec()), timeout=lib.START_S)
        self.assertEqual(reply.job.state, pb.STATE_SUCCEEDED)
        found = lib.failure(lib.Stub(self.cluster.channel(self.proxy, credentials=grpc.ssl_channel_credentials(
            self.ca.read_bytes()))).ListModels, pb.ListModelsRequest())
        self.assertFails(found, "UNAUTHENTICATED", "UNAUTHENTICATED")

    def test_streams(self):
        data = lib.png(4000, 3000)
        digest = hashlib.sha256(data).hexdigest()

        def messages():
            yield pb.UploadImageRequest(header=pb.UploadHeader(sha256=digest, size_bytes=len(data)))
            for i in range(0, len(data), MIB):
                yield pb.UploadImageRequest(chunk=data[i:i + MIB])
        self.stub.UploadImage(messages(), timeout=lib.START_S)
        job = lib.wait(self.stub, lib.create(self.stub, image=digest).name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)
        chunks = list(self.stub.FetchMasks(pb.FetchMasksRequest(
            name=job.name, format=pb.MaskFormat(encoding=pb.MASK_ENCODING_PACKED_BITS)), timeout=lib.START_S))
        self.assertEqual(sum(len(c.mask.data) for c in chunks), 4000 * 3000 // 8)
        watch = lib.Stub(self.channel, "grpc.health.v1.Health").Watch(HealthRequest(), timeout=lib.CALL_S)
        self.assertEqual(next(watch).status, 1)
        watch.cancel()
        watch = lib.Stub(self.channel, "grpc.health.v1.Health").Watch(HealthRequest(), timeout=4)
        with self.assertRaises(grpc.RpcError) as caught:
            list(watch)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "silence of the server is no fault")

    def test_nothing_else_is_served(self):
        for path in ("/pseg.v1.AdminService/ListCases", "/", "/metrics"):
            with self.assertRaises(grpc.RpcError) as caught:
                self.channel.unary_unary(path)(b"", timeout=lib.CALL_S)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.PERMISSION_DENIED, path)

    # ---- attacks ----

    def test_headers_without_an_end(self):
        """CVE-2023-33953: a header in many CONTINUATION frames, which libgrpc reads in quadratic time."""
        with self.connect() as c:
            head = self.headers(CREATE) + b"\0" + h2.integer(6, 7) + b"x-much" + h2.integer(8 * MIB, 7)
            c.send(h2.frame(h2.HEADERS, 0, 1, head))
            for _ in range(512):
                if not c.send(h2.frame(h2.CONTINUATION, 0, 1, b"a" * 16384)):
                    break
            self.assertTrue(c.is_closed(10))
        self.untouched(8 * MIB, 0.5)

    def test_large_headers(self):
        with self.connect() as c:
            c.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, self.headers(CREATE, ("x-much", "y" * 15900))))
            self.assertTrue(c.wait(lambda: 1 in c.ended) or c.closed.is_set())
        self.untouched(8 * MIB, 0.5)

    def test_streams_that_are_opened_and_reset(self):
        """CVE-2023-44487: without a message they end at the proxy, with one they are counted as calls."""
        for message, resident, seconds in ((b"", 8 * MIB, 1), (h2.frame(h2.DATA, 0, 0, h2.grpc_message(b"")), 256 * MIB, 10)):
            with self.connect() as c:
                for s in range(1, 60001, 2):
                    body = message[:5] + s.to_bytes(4, "big") + message[9:] if message else b""
                    if not c.send(h2.frame(h2.HEADERS, h2.END_HEADERS, s, self.headers(CREATE)) + body +
                                  h2.frame(h2.RST_STREAM, 0, s, b"\0\0\0\x08")):
                        break
            self.untouched(resident, seconds)

    def test_many_connections(self):
        """CVE-2023-4785 wants descriptors to run out: the scheduler sees the proxy's own connections."""
        def descriptors():
            return len(os.listdir(f"/proc/{self.scheduler.child.pid}/fd"))
        before, mine = descriptors(), []
        try:
            for i in range(40):
                try:
                    mine.append(socket.create_connection(("127.0.0.1", int(self.proxy.target.split(":")[1])), timeout=5))
                except ConnectionResetError:  # the proxy may hang up before this side knows that it is connected
                    # The channel of these tests counts, and one that the test before has just closed may.
                    self.assertGreaterEqual(i, BOUND - 2, "within the bound of one address")
            for s in mine[BOUND:]:
                self.assertTrue(hung_up(s), "over the bound of one address")
            self.assertLessEqual(descriptors(), before + 4)
        finally:
            for s in mine:
                s.close()
        self.works()

    def test_openings_that_stand_still(self):
        port = int(self.proxy.target.split(":")[1])
        for text in (b"", b"\x16\x03\x01"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
                s.sendall(text)
                self.assertTrue(hung_up(s), "before TLS")
        for text in (b"", b"PRI * HT", h2.PREFACE, h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) +
                     h2.frame(h2.HEADERS, 0, 1, self.headers(CREATE))):
            with self.subTest(text), self.connect(preface=False) as c:
                c.send(text)
                self.assertTrue(c.is_closed(10), "within TLS")


if __name__ == "__main__":
    lib.main()
