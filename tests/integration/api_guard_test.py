#!/usr/bin/env python3
"""Hostile clients: each guard of docs/threat-model.md against the attack that it is for, frame by frame.
What must hold in each: the memory stays bounded, and another client is answered meanwhile."""
import os
import socket
import threading
import zlib

import grpc

import lib_h2 as h2
import lib_pseg as lib
from lib_pseg import pb

CREATE = f"/{lib.SERVICE}/CreateJob"
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
HealthRequest = lib.message("grpc.health.v1.HealthCheckRequest")
MIB = 1 << 20
# What a sanitizer keeps of freed memory is no growth of ours.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8"


def resident(process):
    with open(f"/proc/{process.child.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


class Guards(lib.Test):
    OPTIONS = ()

    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--max-calls", "8", "--max-rpc-bytes", "64M",
                                          "--stall-ms", "5s", *cls.OPTIONS)
        cls.stub = cluster.stub(cls.scheduler)
        cls.health = cluster.stub(cls.scheduler, "grpc.health.v1.Health")

    def setUp(self):
        self.works()
        self.before = resident(self.scheduler)

    def works(self):
        for call, q in ((self.health.Check, HealthRequest()), (self.stub.ListModels, pb.ListModelsRequest())):
            lib.until("a call of somebody else", lambda call=call, q=q: self.answered(call, q))

    def answered(self, call, q):
        try:
            return call(q, timeout=lib.CALL_S) is not None
        except grpc.RpcError as e:  # under attack a connection may be asked to come again
            self.assertIn(e.code(), (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE), e)
            return False

    def grown(self, most):
        self.assertLess(resident(self.scheduler) - self.before, most * lib.SLOWER)  # shadow memory, too

    def connect(self, **kw):
        return h2.Connection(self.scheduler.target, **kw)

    def open(self, connection, stream, path, *headers):
        return connection.send(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, h2.call_headers(path, *headers)))


class Memory(Guards):
    OPTIONS = ("--max-calls", "1000")

    def test_messages_that_never_end(self):
        """60 requests of 15 MiB, each but for its last byte: 840 MiB if they were all kept."""
        with self.connect() as c:
            streams = range(1, 121, 2)
            for s in streams:
                self.assertTrue(self.open(c, s, CREATE))
                c.data(s, h2.grpc_message(b"", claimed=15 * MIB))
            for i in range(14):
                for s in streams:
                    c.data(s, bytes(MIB))
                if i == 7:
                    self.works()
            self.assertTrue(c.resets or c.closed.is_set(), "calls were cancelled")
            self.grown(300 * MIB)

    def test_a_decompression_bomb(self):
        deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = deflate.compress(bytes(200 * MIB)) + deflate.flush()
        with self.connect() as c:
            self.open(c, 1, CREATE, ("grpc-encoding", "gzip"))
            c.data(1, h2.grpc_message(bomb, compressed=True), h2.END_STREAM)
            self.assertTrue(c.wait(lambda: 1 in c.ended))
            self.grown(64 * MIB)

    def test_a_small_message_of_many_parts(self):
        """800 kB that would unpack to 25 MB of prompts."""
        body = lib.message("pseg.v1.CreateJobRequest")(job=pb.JobSpec(prompts=[pb.Prompt()] * 400000))
        body = body.SerializeToString()
        call = self.cluster.channel(self.scheduler).unary_unary(CREATE)
        for _ in range(20):
            self.assertEqual(lib.failure(call, body).code.name, "INVALID_ARGUMENT")
        self.grown(64 * MIB)

    def test_no_message_contains_itself(self):
        """libprotobuf-c unpacks by recursion without a limit: then no request may be deeper than its type."""
        def walk(d, above):
            self.assertNotIn(d.full_name, above, "a message that may contain itself, in a request")
            for f in d.fields:
                if f.message_type:
                    walk(f.message_type, above | {d.full_name})
        for service, methods in lib.METHODS.items():
            for m in methods.values():
                walk(lib.message(m.input_type[1:]).DESCRIPTOR, frozenset())

    def test_headers_that_are_too_large(self):
        for size in (9000, 60000):
            with self.connect() as c:
                block = h2.call_headers(CREATE, ("x-much", "y" * size))
                pieces = [block[i:i + 16384] for i in range(0, len(block), 16384)]
                for i, piece in enumerate(pieces):
                    kind = h2.CONTINUATION if i else h2.HEADERS
                    c.send(h2.frame(kind, h2.END_HEADERS if i == len(pieces) - 1 else 0, 1, piece))
                self.assertTrue(c.wait(lambda: 1 in c.ended) or c.closed.is_set())
        self.grown(16 * MIB)

    def test_streams_that_are_opened_and_reset(self):
        """CVE-2023-44487. The core does the work of each; what it may cost is bounded, not nothing."""
        with self.connect() as c:
            for s in range(1, 40001, 2):
                if not c.send(h2.frame(h2.HEADERS, h2.END_HEADERS, s, h2.call_headers(CREATE)) +
                              h2.frame(h2.RST_STREAM, 0, s, b"\0\0\0\x08")):
                    break
            self.works()
        self.grown(600 * MIB)


class Calls(Guards):
    def test_who_has_no_key_takes_no_place(self):
        """Watches of health are many and stay; checks of health and other calls are answered all the same."""
        with self.connect() as c:
            for s in range(1, 801, 2):
                self.open(c, s, WATCH)
                c.data(s, h2.grpc_message(b""), h2.END_STREAM)
            self.assertTrue(c.wait(lambda: len(c.ended) >= 400 - 256), "over 256 are refused")
            self.works()
            self.assertIsNotNone(self.stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S))
            self.assertLess(len(c.ended), 400)
            self.assertFalse(c.closed.is_set())

    def test_more_calls_than_may_be(self):
        """All at once, on one connection: each is answered, with OK or with no."""
        with self.connect() as c:
            streams = range(1, 1601, 2)
            for s in streams:
                self.open(c, s, f"/{lib.SERVICE}/ListModels")
                self.assertTrue(c.data(s, h2.grpc_message(b""), h2.END_STREAM) or s in c.ended)
            self.assertTrue(c.wait(lambda: len(c.ended) == len(streams)))
        self.grown(64 * MIB)

    def test_calls_that_are_opened_and_left_alone(self):
        with self.connect() as c:
            for s in range(1, 17, 2):
                self.open(c, s, CREATE)
            self.assertTrue(c.wait(lambda: len(c.ended) == 8, 20), "they end after --stall-ms")
            self.works()


class Connections(Guards):
    OPTIONS = ("--stall-ms", "700ms", "--idle-ms", "700ms")

    def test_handshakes_that_stand_still(self):
        for text in (b"", b"PRI * HT", h2.PREFACE, h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0)[:5],
                     b"GET / HTTP/1.1\r\nHost: x\r\n"):
            with self.subTest(text), self.connect(preface=False) as c:
                c.send(text)
                self.assertTrue(c.is_closed(10), "the connection ends")

    def test_connections_without_calls(self):
        with self.connect() as c:
            self.assertTrue(c.wait(lambda: c.goaway, 10) or c.closed.is_set())
            self.assertTrue(c.is_closed(30))

    def test_clients_come_back_by_themselves(self):
        channel = self.cluster.channel(self.scheduler)
        states, gone = [], threading.Event()
        channel.subscribe(lambda state: (states.append(state), state == grpc.ChannelConnectivity.IDLE and
                                         grpc.ChannelConnectivity.READY in states and gone.set()))
        stub = lib.Stub(channel)
        self.assertIsNotNone(stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S))
        self.assertTrue(gone.wait(20), states)
        self.assertIsNotNone(stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S))


class Listener(lib.Test):
    """CVE-2023-4785: at the first accept without a free descriptor libgrpc's listener is gone for good. Then
    the process ends, non-zero, so that a supervisor starts it anew."""

    @classmethod
    def setup(cls, cluster):
        pass

    def test_no_descriptors_left(self):
        ready = self.cluster.folder / "few.ready"
        p = self.cluster._start("few", ["prlimit", "--nofile=60:60", lib.BIN / "pseg-scheduler", "--redis",
                                        f"unix:{self.cluster.socket}", "--listen", "127.0.0.1:0", "--ready-file",
                                        ready], ready=ready)
        host, port = p.wait_ready().rsplit(":", 1)
        sockets = []
        try:
            for _ in range(80):
                try:
                    sockets.append(socket.create_connection((host, int(port)), timeout=5))
                except OSError:
                    break
                if p.child.poll() is not None:
                    break
            self.assertEqual(p.wait(), 1)
        finally:
            for s in sockets:
                s.close()
        self.assertIn("the listener is lost", p.log())


if __name__ == "__main__":
    lib.main()
