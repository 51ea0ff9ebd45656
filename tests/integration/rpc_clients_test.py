#!/usr/bin/env python3
"""common/rpc against gRPC's own Python client, and against bytes that are no gRPC at all.
Usage: rpc_clients_test.py SERVER DESCRIPTORS. Exit 77: python3-grpcio is not there."""
import os
import socket
import subprocess
import sys
import threading
import unittest

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

SERVER, DESCRIPTORS = sys.argv[1], sys.argv[2]
POOL = descriptor_pool.DescriptorPool()
with open(DESCRIPTORS, "rb") as f:
    for file in descriptor_pb2.FileDescriptorSet.FromString(f.read()).file:
        POOL.Add(file)


def message(name):
    d = POOL.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(d)
    return message_factory.MessageFactory(POOL).GetPrototype(d)


Echo, Reply = message("pseg.test.v1.EchoRequest"), message("pseg.test.v1.EchoReply")
Fail, Count = message("pseg.test.v1.FailRequest"), message("pseg.test.v1.CountRequest")
Wait, Status = message("pseg.test.v1.WaitRequest"), message("google.rpc.Status")


class Server:
    """The demo server as a process of its own."""

    def __init__(self, *args, files=None):
        # Not by preexec_fn: Python would fork then, and gRPC's fork handlers may wait for ever.
        limit = ["prlimit", f"--nofile={files}:{files}", "--"] if files else []
        self.process = subprocess.Popen([*limit, SERVER, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        self.port = int(self.process.stdout.readline().split()[1])
        self.target = f"127.0.0.1:{self.port}"

    def channel(self, **options):
        return grpc.insecure_channel(self.target, options=[("grpc.max_receive_message_length", 64 << 20),
                                                           ("grpc.use_local_subchannel_pool", 1),
                                                           *options.items()])

    def stop(self):
        """Graceful; gives the exit status."""
        self.process.stdin.close()
        out = self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(60), out


def unary(channel, method, request, reply=Reply, timeout=20, **kw):
    return channel.unary_unary(f"/pseg.test.v1.Demo/{method}", type(request).SerializeToString,
                               reply.FromString)(request, timeout=timeout, **kw)


def details(error):
    """google.rpc.Status of a failed call and its details by type."""
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            status = Status.FromString(value)
            return status, {d.type_url.split("/")[-1]: message(d.type_url.split("/")[-1]).FromString(d.value)
                            for d in status.details}
    return None, {}


class Calls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.channel = cls.server.channel()

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        assert cls.server.stop() == (0, "STOPPED\n")

    def failure(self, method, request, **kw):
        with self.assertRaises(grpc.RpcError) as caught:
            unary(self.channel, method, request, **kw)
        return caught.exception

    def raw_failure(self, data):
        with self.assertRaises(grpc.RpcError) as caught:
            self.channel.unary_unary("/pseg.test.v1.Demo/Echo")(data, timeout=20)
        return caught.exception

    def test_unary_and_streams(self):
        self.assertEqual(unary(self.channel, "Echo", Echo(text="grüße \U0001F600")).text, "grüße \U0001F600")
        chunks = (Echo(data=b"x" * 65536) for _ in range(50))
        up = self.channel.stream_unary("/pseg.test.v1.Demo/Upload", Echo.SerializeToString, Reply.FromString)
        self.assertEqual(up(chunks, timeout=20).size, 50 * 65536)
        down = self.channel.unary_stream("/pseg.test.v1.Demo/Count", Count.SerializeToString, Reply.FromString)
        self.assertEqual([r.size for r in down(Count(n=500), timeout=20)], list(range(500)))
        both = self.channel.stream_stream("/pseg.test.v1.Demo/Chat", Echo.SerializeToString, Reply.FromString)
        self.assertEqual([r.text for r in both((Echo(text=str(i)) for i in range(100)), timeout=20)],
                         [str(i) for i in range(100)])

    def test_rich_errors(self):
        e = self.failure("Fail", Fail(reason="PROMPT_EMPTY", message="prompt is empty".encode(),
                                      field="job.prompts[1].text"))
        status, found = details(e)
        self.assertEqual(e.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual((status.code, status.message), (3, "prompt is empty"))
        self.assertEqual(e.details(), status.message)
        info, bad = found["google.rpc.ErrorInfo"], found["google.rpc.BadRequest"]
        self.assertEqual((info.reason, info.domain), ("PROMPT_EMPTY", "pseg"))
        self.assertEqual([(v.field, v.description) for v in bad.field_violations],
                         [("job.prompts[1].text", "prompt is empty")])
        self.assertNotIn("google.rpc.RetryInfo", found)
        e = self.failure("Fail", Fail(reason="QUEUE_FULL", message=b"full", retry_after_ms=2500))
        self.assertEqual(e.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        delay = details(e)[1]["google.rpc.RetryInfo"].retry_delay
        self.assertEqual((delay.seconds, delay.nanos), (2, 500000000))
        e = self.failure("Fail", Fail(reason="BROKER_UNAVAILABLE", message=b"down"))
        self.assertEqual(e.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(details(e)[1]["google.rpc.RetryInfo"].retry_delay.seconds, 1)

    def test_messages_are_always_utf8(self):
        e = self.failure("Fail", Fail(reason="INTERNAL", message=b"a\xff\xfe\nb"))
        self.assertEqual(details(e)[0].message, "a???b")

    def test_malformed_requests(self):
        for data, field in ((b"\x0a\x02\xff\xfe", "text"), (b"\x0a\x03a\0b", "text"),
                            (b"\x1a\x01a\x1a\x01\xff", "names[1]"), (b"\x2a\x03\x0a\x01\xff", "nested.text"),
                            (b"\x22\x06\x0a\x01k\x12\x01\xff", "labels[0].value")):
            e = self.raw_failure(data)
            found = details(e)[1]
            self.assertIn("google.rpc.ErrorInfo", found, (data, e))
            self.assertEqual(found["google.rpc.ErrorInfo"].reason, "REQUEST_MALFORMED")
            self.assertEqual(found["google.rpc.BadRequest"].field_violations[0].field, field)
        for data in (b"\xff", b"\x0a\x7f", b"\x0b", b"\x0a", os.urandom(1000), b"\x0a\x00" * 10 + b"\x07"):
            self.assertEqual(self.raw_failure(data).code(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_deadline_and_cancel(self):
        self.assertEqual(self.failure("Wait", Wait(), timeout=0.1).code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        call = self.channel.unary_unary("/pseg.test.v1.Demo/Wait", Wait.SerializeToString,
                                        Reply.FromString).future(Wait())
        call.cancel()
        self.assertTrue(call.cancelled())

    def test_compressed_requests_are_refused(self):
        e = self.failure("Echo", Echo(data=b"\0" * 1000000), compression=grpc.Compression.Gzip)
        self.assertEqual(e.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_limits(self):
        e = self.failure("Echo", Echo(data=b"x" * (5 << 20)))
        self.assertEqual(details(e)[1]["google.rpc.ErrorInfo"].reason, "REQUEST_TOO_LARGE")
        self.assertEqual(e.code(), grpc.StatusCode.INVALID_ARGUMENT)
        e = self.failure("Echo", Echo(data=b"x" * (17 << 20)))
        self.assertEqual(e.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        with self.server.channel() as channel:  # its own: the core may close the connection, too
            with self.assertRaises(grpc.RpcError) as caught:
                unary(channel, "Echo", Echo(), metadata=[("x-large", "y" * 20000)])
        self.assertIn(caught.exception.code(), (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE))

    def test_unknown_method(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.channel.unary_unary("/pseg.test.v1.Demo/Nothing")(b"", timeout=20)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
        self.assertEqual(details(caught.exception)[1]["google.rpc.ErrorInfo"].reason, "UNSUPPORTED")

    def test_health_and_reflection(self):
        request, reply = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check", request.SerializeToString, reply.FromString)
        self.assertEqual(check(request(), timeout=20).status, 1)
        with self.assertRaises(grpc.RpcError) as caught:
            check(request(service="nobody"), timeout=20)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        for version in ("v1", "v1alpha"):
            package = f"grpc.reflection.{version}"
            ask, said = message(f"{package}.ServerReflectionRequest"), message(f"{package}.ServerReflectionResponse")
            call = self.channel.stream_stream(f"/{package}.ServerReflection/ServerReflectionInfo",
                                              ask.SerializeToString, said.FromString)
            listed, found = call(iter([ask(list_services=""), ask(file_containing_symbol="pseg.test.v1.Demo")]),
                                 timeout=20)
            self.assertIn("pseg.test.v1.Demo", [s.name for s in listed.list_services_response.service])
            pool = descriptor_pool.DescriptorPool()  # as a generic client builds it
            for file in reversed(found.file_descriptor_response.file_descriptor_proto):
                pool.AddSerializedFile(file)
            self.assertEqual(len(pool.FindServiceByName("pseg.test.v1.Demo").methods), 7)

    def test_bytes_that_are_no_grpc(self):
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", os.urandom(5000),
                     preface + os.urandom(3000), preface + b"\0\0\0\x04\0\0\0\0\0" + b"\xff" * 500,
                     preface + b"\0\xff\xff\x01\x05\0\0\0\x01" + b"\x80" * 70000):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                try:
                    s.sendall(data)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except OSError:
                    pass
        self.assertEqual(unary(self.channel, "Echo", Echo(text="alive")).text, "alive")


class Lives(unittest.TestCase):
    def test_stop_under_load(self):
        server, codes, bad = Server(), [], []
        begun = threading.Semaphore(0)

        def load():
            with server.channel() as channel:
                for i in range(1000000):
                    try:
                        if unary(channel, "Echo", Echo(text=str(i))).text != str(i):
                            bad.append(i)
                        begun.release()
                    except grpc.RpcError as e:
                        codes.append(e.code())
                        return
        threads = [threading.Thread(target=load) for _ in range(4)]
        for t in threads:
            t.start()
        for _ in range(200):
            begun.acquire()
        self.assertEqual(server.stop(), (0, "STOPPED\n"))
        for t in threads:
            t.join()
        self.assertEqual(bad, [])
        # CANCELLED is the core's word for a call that came between its stop and its GOAWAY.
        self.assertLessEqual(set(codes), {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})

    def test_a_lost_listener_is_noticed(self):
        server = Server(files=64)
        connections = []
        try:
            for _ in range(150):
                connections.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        except OSError:
            pass
        try:
            status = server.process.wait(10)
            self.assertEqual((status, server.process.stdout.read()), (3, "LOST\n"))
        except subprocess.TimeoutExpired:  # a core without that fault goes on listening
            for c in connections:
                c.close()
            with server.channel() as channel:
                self.assertEqual(unary(channel, "Echo", Echo(text="alive"), wait_for_ready=True).text, "alive")
            server.stop()
        finally:
            for c in connections:
                c.close()
            server.process.stdin.close()
            server.process.stdout.close()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
