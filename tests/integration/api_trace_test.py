#!/usr/bin/env python3
"""Traces from a client through scheduler, Redis and worker to a collector: a server of OTLP/gRPC made of
OpenTelemetry's own protocol files takes the spans, and what they say is held against what happened."""
import concurrent.futures
import re
import shutil
import subprocess
import sys
import threading
import time

import grpc

import lib_pseg as lib
from lib_metrics import value
from lib_pseg import pb

if not shutil.which("protoc"):
    print("skipped: no protoc")
    sys.exit(77)

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
STAGES = {"fetch", "decode_image", "preprocess", "encode_image", "encode_text", "decode_mask", "publish"}


def load_protocol(folder):
    out = folder / "otlp.desc"
    subprocess.run(["protoc", "-Iproto", "--include_imports", f"--descriptor_set_out={out}",
                    "opentelemetry/proto/collector/trace/v1/trace_service.proto"], check=True)
    for file in lib.descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        lib.POOL.Add(file)


class Collector:
    """Keeps every span it is sent, with the name of the service that sent it."""

    def __init__(self, address="127.0.0.1:0"):
        self.spans, self.lock = [], threading.Lock()
        request = lib.message("opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest")
        reply = lib.message("opentelemetry.proto.collector.trace.v1.ExportTraceServiceResponse")

        def export(q, _):
            with self.lock:
                for r in q.resource_spans:
                    of = {a.key: a.value.string_value for a in r.resource.attributes}
                    self.spans += [(of, s) for scope in r.scope_spans for s in scope.spans]
            return reply()

        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(export, request.FromString, reply.SerializeToString)
        service, method = EXPORT[1:].split("/")
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self.server.add_insecure_port(address)
        self.server.start()

    def of(self, trace):
        with self.lock:
            return [(of, s) for of, s in self.spans if s.trace_id.hex() == trace]


def notes(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def reason_of(job):
    info = lib.message("google.rpc.ErrorInfo")()
    assert job.error.details[0].Unpack(info), job.error
    return info.reason


class Traces(lib.Test):
    @classmethod
    def setup(cls, cluster):
        load_protocol(cluster.folder)
        cls.collector = Collector()
        endpoint = f"http://127.0.0.1:{cls.collector.port}"
        cls.scheduler = cluster.scheduler("--default-model", "scenes", "--otlp-endpoint", endpoint,
                                          "--metrics-listen", "127.0.0.1:0")
        cls.stub = cluster.stub(cls.scheduler)
        cls.worker = cluster.worker("scenes", "--otlp-endpoint", endpoint, "--metrics-listen", "127.0.0.1:0")

    @classmethod
    def tearDownClass(cls):
        cls.collector.server.stop(None)

    def run_job(self, traceparent, stub=None, **kw):
        stub = stub or self.stub
        job = stub.CreateJob(pb.CreateJobRequest(job=lib.spec(**kw)), timeout=lib.CALL_S,
                             metadata=[("traceparent", traceparent)] if traceparent else [])
        return lib.wait(stub, job.name)

    def test_a_job_is_one_trace(self):
        trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        before = time.time()
        # An image of its own: one that the worker has met has no stages before the phrases.
        job = self.run_job(f"00-{trace}-{caller}-01", image=lib.png(64, 64, 4711), phrases=("a star", "a ring"))
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)
        found = lib.until("the worker's spans", lambda: [x for x in self.collector.of(trace)
                                                         if x[1].name == "process job"] and self.collector.of(trace))
        after = time.time()
        by_name = {s.name: (of, s) for of, s in found}
        self.assertEqual(len(by_name), len(found), "each once")
        of, call = by_name["pseg.v1.SegmentationService/CreateJob"]
        self.assertEqual(of["service.name"], "pseg-scheduler")
        self.assertEqual((call.parent_span_id.hex(), call.kind), (caller, 2))
        self.assertEqual(notes(call)["rpc.response.status_code"], "OK")
        self.assertEqual(notes(call)["pseg.tenant"], "default")
        of, work = by_name["process job"]
        self.assertEqual(of["service.name"], "pseg-worker")
        self.assertEqual((work.parent_span_id, work.kind), (call.span_id, 5))
        told = notes(work)
        self.assertEqual(told["pseg.job.id"], job.name[5:])
        self.assertEqual((told["pseg.job.outcome"], told["pseg.job.attempt"], told["pseg.job.prompts"]),
                         ("published", 1, 2))
        self.assertEqual(told["pseg.model"], "scenes")
        self.assertEqual(by_name["queue"][1].parent_span_id, call.span_id)
        stages = {s.name: s for _, s in found if s.parent_span_id == work.span_id}
        self.assertEqual(set(stages), STAGES)
        # They lie inside the job, one after the other, and last as long as the job itself tells.
        order = sorted(stages.values(), key=lambda s: s.start_time_unix_nano)
        for a, b in zip(order, order[1:]):
            self.assertLessEqual(a.end_time_unix_nano, b.start_time_unix_nano + 1000, (a.name, b.name))
        self.assertGreaterEqual(order[0].start_time_unix_nano, work.start_time_unix_nano)
        self.assertLessEqual(order[-1].end_time_unix_nano, work.end_time_unix_nano)
        told = {s.stage: s.duration.seconds * 10**9 + s.duration.nanos for s in job.stages}
        for name in STAGES - {"publish"}:
            self.assertEqual(stages[name].end_time_unix_nano - stages[name].start_time_unix_nano, told[name], name)
        for _, s in found:
            self.assertTrue(before - 1 < s.start_time_unix_nano / 1e9 <= s.end_time_unix_nano / 1e9 < after + 1, s.name)

    def test_kernels_lie_in_their_stages(self):
        endpoint = f"http://127.0.0.1:{self.collector.port}"
        self.worker.stop()
        try:
            deep = self.cluster.worker("scenes", "--otlp-endpoint", endpoint, "--trace-kernels", "--threads", "1")
            trace = "5" * 32
            # Not traced: its launches are nobody's.
            self.run_job(None, image=lib.png(64, 64, 4712))
            job = self.run_job(f"00-{trace}-{'6' * 16}-01", image=lib.png(64, 64, 4713), phrases=("a star", "a ring"))
            self.assertEqual(job.state, pb.STATE_SUCCEEDED)
            lib.until("the worker's spans",
                      lambda: [1 for _, s in self.collector.of(trace) if s.name == "process job"])
            spans = [s for _, s in self.collector.of(trace)]
            stages = {s.span_id: s for s in spans if s.name in ("encode_image", "encode_text", "decode_mask")}
            self.assertEqual(len(stages), 3)
            for at, stage in stages.items():
                launches = [s for s in spans if s.parent_span_id == at]
                with self.subTest(stage.name):
                    self.assertGreater(len(launches), 10)
                    self.assertIn("gemm", {s.name for s in launches})
                    inside = sum(s.end_time_unix_nano - s.start_time_unix_nano for s in launches)
                    whole = stage.end_time_unix_nano - stage.start_time_unix_nano
                    self.assertTrue(0 < inside <= whole, (inside, whole))
                    # Microseconds are cut off, and a clock is read a little after the last launch.
                    slack = 20_000_000
                    self.assertGreaterEqual(launches[0].start_time_unix_nano, stage.start_time_unix_nano - slack)
                    self.assertLessEqual(launches[-1].end_time_unix_nano, stage.end_time_unix_nano + slack)
                    for a, b in zip(launches, launches[1:]):
                        self.assertLessEqual(a.start_time_unix_nano, b.start_time_unix_nano)
            deep.stop()
        finally:
            type(self).worker = self.cluster.worker("scenes", "--otlp-endpoint", endpoint, "--metrics-listen",
                                                    "127.0.0.1:0")

    def test_a_failed_job_says_why(self):
        trace = "1" * 32
        job = self.run_job(f"00-{trace}-{'2' * 16}-01", image=lib.SCENE[:300])
        self.assertEqual(job.state, pb.STATE_FAILED)
        work = lib.until("the worker's span", lambda: [s for _, s in self.collector.of(trace)
                                                       if s.name == "process job"])[0]
        self.assertEqual((work.status.code, work.status.message), (2, reason_of(job)))
        self.assertEqual(notes(work)["pseg.job.outcome"], "failed")

    def test_who_does_not_want_to_be_traced_is_not(self):
        trace = "3" * 32
        self.run_job(f"00-{trace}-{'2' * 16}-00")
        self.run_job(f"00-{'5' * 32}-{'2' * 16}-01")  # what comes after it has been told
        lib.until("the other trace", lambda: [s for _, s in self.collector.of("5" * 32) if s.name == "process job"])
        self.assertEqual(self.collector.of(trace), [])

    def test_a_malformed_context_begins_a_new_trace(self):
        """W3C: a receiver that cannot parse it starts anew, and the call is none the worse."""
        job = self.run_job(f"00-{'0' * 32}-{'2' * 16}-01")
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)

        def mine():
            with self.collector.lock:
                return [s for _, s in self.collector.spans if notes(s).get("pseg.job.id") == job.name[5:]]
        work = lib.until("the span", mine)[0]
        self.assertNotEqual(work.trace_id, bytes(16))
        calls = [s for _, s in self.collector.of(work.trace_id.hex()) if s.span_id == work.parent_span_id]
        self.assertEqual(calls[0].parent_span_id, b"")

    def test_probes_are_no_spans(self):
        health = lib.Stub(self.cluster.channel(self.scheduler), "grpc.health.v1.Health")
        health.Check(lib.message("grpc.health.v1.HealthCheckRequest")(), timeout=lib.CALL_S)
        self.run_job(f"00-{'6' * 32}-{'2' * 16}-01")
        lib.until("the trace after it", lambda: self.collector.of("6" * 32))
        with self.collector.lock:
            self.assertEqual([s.name for _, s in self.collector.spans if "Health" in s.name], [])

    def test_the_command_line_client_hands_it_on(self):
        trace = "7" * 32
        subprocess.run([lib.BIN / "pseg", "segment", "--image", "docs/example/scene.png", "--prompt", "a star", "--server",
                        self.scheduler.target, "--out", self.cluster.folder / "mask.png", "--traceparent",
                        f"00-{trace}-{'8' * 16}-01"], check=True, stdout=subprocess.DEVNULL)
        lib.until("its spans", lambda: {"process job"} <= {s.name for _, s in self.collector.of(trace)})

    def test_a_collector_that_is_away_costs_nothing_but_its_spans(self):
        gone = Collector()
        gone.server.stop(None).wait()
        scheduler = self.cluster.scheduler("--default-model", "scenes", "--otlp-endpoint", f"127.0.0.1:{gone.port}",
                                           "--metrics-listen", "127.0.0.1:0")
        stub = self.cluster.stub(scheduler)
        self.assertEqual(self.run_job(None, stub).state, pb.STATE_SUCCEEDED)
        lib.until("the count", lambda: value(scheduler, "pseg_spans_total", outcome="dropped"))
        self.assertEqual(value(scheduler, "pseg_spans_total", outcome="sent"), 0)
        self.assertEqual(len(re.findall("spans are dropped", scheduler.log())), 1, "one line, not one a second")
        # It comes, and is used without a restart.
        late = Collector(f"127.0.0.1:{gone.port}")
        trace = "9" * 32

        def come():
            self.run_job(f"00-{trace}-{'8' * 16}-01", stub)
            return late.of(trace)
        lib.until("spans at last", come)
        late.server.stop(None)
        self.assertEqual(scheduler.stop(), 0)

    def test_what_is_left_is_sent_at_the_end(self):
        scheduler = self.cluster.scheduler("--default-model", "scenes", "--otlp-endpoint",
                                           f"http://127.0.0.1:{self.collector.port}/")
        trace = "a" * 32
        self.cluster.stub(scheduler).ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S,
                                                metadata=[("traceparent", f"00-{trace}-{'8' * 16}-01")])
        self.assertEqual(scheduler.stop(), 0)
        self.assertEqual([s.name for _, s in self.collector.of(trace)], ["pseg.v1.SegmentationService/ListModels"])

    def test_none_is_traced_at_ratio_0_but_who_asks(self):
        scheduler = self.cluster.scheduler("--default-model", "scenes", "--trace-ratio", "0", "--otlp-endpoint",
                                           f"127.0.0.1:{self.collector.port}")
        stub = self.cluster.stub(scheduler)
        with self.collector.lock:
            before = sum(s.name.endswith("ListModels") for _, s in self.collector.spans)
        stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S)
        stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S, metadata=[("traceparent", f"00-{'b' * 32}-{'8' * 16}-01")])
        self.assertEqual(scheduler.stop(), 0)
        with self.collector.lock:
            self.assertEqual(sum(s.name.endswith("ListModels") for _, s in self.collector.spans), before + 1)

    def test_an_endpoint_that_is_none(self):
        for bad in ("", "http://", "host", "http://host:4317/v1/traces"):
            p = self.cluster.scheduler("--otlp-endpoint", bad, wait=False)
            self.assertNotEqual(p.wait(), 0, bad)
            self.assertIn("must be [http://|https://]host:port", p.log(), bad)


if __name__ == "__main__":
    lib.main()
