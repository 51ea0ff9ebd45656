#!/usr/bin/env python3
"""The service config of docs/clients: gRPC takes it, repeats what may be repeated and nothing else, and goes to a
scheduler that is well."""
import concurrent.futures
import json
import pathlib
import unittest

import grpc

import lib_pseg as lib
from lib_pseg import pb

CONFIG = pathlib.Path("docs/clients/service-config.json").read_text()
OPTIONS = [("grpc.enable_retries", 1), ("grpc.use_local_subchannel_pool", 1)]
# What throttles: of a server that fails again and again, no more is asked than half of the tokens.
EAGER = json.dumps({k: v for k, v in json.loads(CONFIG).items() if k != "retryThrottling"})
SERVICES = (lib.SERVICE, "pseg.v1.BatchService", "inference.GRPCInferenceService")
# A stream of many requests goes on where it was, by its own rules; an inference has no id to be known again by.
NEVER = {"UploadImage", "SubmitJobs", "ModelInfer"}


class Flaky(grpc.GenericRpcHandler):
    """A server that is UNAVAILABLE for the first two attempts of every method."""

    def __init__(self):
        self.attempts = {}

    def service(self, details):
        name = details.method.split("/")[-1]
        if details.method.startswith("/grpc.health"):
            reply = lib.message("grpc.health.v1.HealthCheckResponse")(status=1)
            return grpc.unary_stream_rpc_method_handler(
                lambda q, c: iter([reply.SerializeToString()]), None, None)
        method = lib.METHODS[details.method.split("/")[1]][name]
        kind = "_".join("stream" if s else "unary" for s in (method.client_streaming, method.server_streaming))

        def answer(q, context):
            self.attempts[name] = self.attempts.get(name, 0) + 1
            if self.attempts[name] < 3:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            return b""
        handler = (lambda q, c: iter([answer(q, c)])) if method.server_streaming else answer
        if method.client_streaming:
            once = handler
            handler = (lambda q, c: once(list(q), c))
        return getattr(grpc, f"{kind}_rpc_method_handler")(handler, None, None)


class Retries(unittest.TestCase):
    def serve(self):
        flaky = Flaky()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), handlers=[flaky])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        return flaky, f"127.0.0.1:{port}"

    def test_what_is_repeated(self):
        flaky, target = self.serve()
        for service in SERVICES:
            for name, method in lib.METHODS[service].items():
                with self.subTest(f"{service}/{name}"), \
                        grpc.insecure_channel(target, [("grpc.service_config", EAGER), *OPTIONS]) as channel:
                    q = lib.message(method.input_type[1:])()
                    try:
                        reply = getattr(lib.Stub(channel, service), name)(
                            iter([q]) if method.client_streaming else q, timeout=lib.START_S)
                        if method.server_streaming:
                            reply = list(reply)
                        ended = "OK"
                    except grpc.RpcError as e:
                        ended = e.code().name
                    found = (flaky.attempts.get(name), ended)
                    self.assertEqual(found, (1, "UNAVAILABLE") if name in NEVER else (3, "OK"))

    def test_a_server_that_only_fails_is_spared(self):
        flaky, target = self.serve()
        flaky.attempts["GetJob"] = -1000
        with grpc.insecure_channel(target, [("grpc.service_config", CONFIG), *OPTIONS]) as channel:
            for _ in range(10):
                with self.assertRaises(grpc.RpcError):
                    lib.Stub(channel).GetJob(pb.GetJobRequest(), timeout=lib.START_S)
        self.assertLess(flaky.attempts["GetJob"] + 1000, 20, "40 without throttling")

    def test_it_names_what_is_there(self):
        for entry in json.loads(CONFIG)["methodConfig"]:
            for name in entry["name"]:
                self.assertIn(name["service"], SERVICES)
                if "method" in name:
                    self.assertIn(name["method"], lib.METHODS[name["service"]])


class Balance(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.schedulers = [cluster.scheduler("--default-model", "empty") for _ in range(2)]

    def test_a_scheduler_that_stops_is_left(self):
        target = "ipv4:" + ",".join(s.target for s in self.schedulers)
        with grpc.insecure_channel(target, [("grpc.service_config", CONFIG), *OPTIONS]) as channel:
            stub = lib.Stub(channel)
            self.assertEqual(stub.ListModels(pb.ListModelsRequest(), timeout=lib.START_S, wait_for_ready=True).models[:], [])
            self.assertEqual(self.schedulers[0].stop(), 0)
            for _ in range(50):
                stub.ListModels(pb.ListModelsRequest(), timeout=lib.START_S)


if __name__ == "__main__":
    lib.main()
