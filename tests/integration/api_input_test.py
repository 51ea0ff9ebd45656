#!/usr/bin/env python3
"""Whatever a client sends wrong is answered with a code, a reason, the field, the value and the limit,
and the server lives on."""
import math
import time

import lib_pseg as lib
from lib_pseg import pb


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


class Input(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.stub = cluster.stub(cls.scheduler)
        cluster.worker("empty")

    def tearDown(self):
        job = lib.wait(self.stub, lib.create(self.stub).name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED, "the service lives on")

    def refused(self, spec, reason, field_, value, limit, code="INVALID_ARGUMENT"):
        for call, q in ((self.stub.CreateJob, pb.CreateJobRequest), (self.stub.Segment, pb.SegmentRequest)):
            found = self.assertFails(lib.failure(call, q(job=spec)), code, reason, field_)
            self.assertEqual(found.metadata, {"value": value, "limit": limit}, found)
            self.assertIsNone(found.retry_s)

    def raw(self, data, method="CreateJob"):
        call = self.cluster.channel(self.scheduler).unary_unary(f"/{lib.SERVICE}/{method}")
        return lib.failure(call, data)

    def raw_phrase(self, text):
        prompt = field(3, field(1, text))
        return self.raw(field(2, field(1, lib.SCENE) + field(3, field(1, b"fine")) + prompt))

    # ---- phrases ----

    def test_phrases_that_are_missing_or_empty(self):
        self.refused(lib.spec(phrases=()), "PROMPT_MISSING", "job.prompts", "0", "1..64")
        self.refused(lib.spec(phrases=("",)), "PROMPT_EMPTY", "job.prompts[0].text", "0", "1..1024")
        self.refused(lib.spec(phrases=("fine", " \t\u3000 ")), "PROMPT_EMPTY", "job.prompts[1].text", "6 blanks", "1..1024")

    def test_phrases_that_are_too_long(self):
        words = "word " * 10000
        self.refused(lib.spec(phrases=(words,)), "PROMPT_TOO_LONG", "job.prompts[0].text", "50000", "1024")
        self.refused(lib.spec(phrases=("x" * 1025,)), "PROMPT_TOO_LONG", "job.prompts[0].text", "1025", "1024")
        self.refused(lib.spec(phrases=("é" * 513,)), "PROMPT_TOO_LONG", "job.prompts[0].text", "1026", "1024")
        job = lib.create(self.stub, phrases=("x" * 1024, "é" * 512, "\U0001F600" * 256))
        self.assertEqual(lib.wait(self.stub, job.name).state, pb.STATE_SUCCEEDED, "the limit itself is fine")

    def test_too_many_phrases(self):
        self.refused(lib.spec(phrases=["a"] * 65), "TOO_MANY_PROMPTS", "job.prompts", "65", "64")
        job = lib.wait(self.stub, lib.create(self.stub, phrases=["a"] * 64).name)
        self.assertEqual((job.state, len(job.results)), (pb.STATE_SUCCEEDED, 64))

    def test_phrases_that_are_no_text(self):
        for text in (b"a\xffb", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"a\0b", b"\0"):
            found = self.assertFails(self.raw_phrase(text), "INVALID_ARGUMENT", "PROMPT_NOT_TEXT", "job.prompts[1].text")
            self.assertEqual(found.metadata, {"value": f"{len(text)} bytes", "limit": "UTF-8 without NUL"})
        for bad, shown in (("\x07", "U+0007"), ("\x1b[2J", "U+001B"), ("\x7f", "U+007F"), ("\x80", "U+0080")):
            self.refused(lib.spec(phrases=(f"a{bad}",)), "PROMPT_NOT_TEXT", "job.prompts[0].text", shown,
                         "no control characters")

    def test_strange_phrases_that_are_fine(self):
        phrases = ("a\tb\nc", "red" + " " * 500 + "circle", "日本語", "\u202e right to left", "'; DROP TABLE jobs; --",
                   "%s%n%d", "\ufeffbom", "e\u0301" * 100, "<|endoftext|>")
        job = lib.wait(self.stub, lib.create(self.stub, phrases=phrases).name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)
        self.assertEqual([p.text for p in job.prompts], list(phrases), "byte by byte")

    # ---- images ----

    def test_images(self):
        limit = str(3 << 20)
        self.refused(pb.JobSpec(prompts=[pb.Prompt(text="x")]), "IMAGE_MISSING", "job.content", "none", "content or sha256")
        self.refused(lib.spec(b""), "IMAGE_MISSING", "job.content", "0", f"1..{limit}")
        self.refused(lib.spec(lib.SCENE + bytes((3 << 20) - len(lib.SCENE) + 1)), "IMAGE_TOO_LARGE", "job.content",
                     str((3 << 20) + 1), limit)
        for data, value in ((b"GIF89a" + bytes(50), "47494638"), (b"x", "78000000"), (b"<svg/>" + bytes(9), "3c737667"),
                            (b"BM" + bytes(50), "424d0000"), (b"%PDF-1.7 " + bytes(9), "25504446")):
            self.refused(lib.spec(data), "IMAGE_FORMAT_UNSUPPORTED", "job.content", value, "JPEG, PNG, WebP, TIFF, HEIC")
        for bad in ("", "xyz", "A" * 64, "0" * 63, "0" * 65):
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec(bad)))
            self.assertFails(found, "INVALID_ARGUMENT", "NAME_INVALID", "job.sha256")

    def test_a_truncated_image_fails_its_job(self):
        for data in (lib.SCENE[:20], lib.SCENE[:8] + bytes(500)):
            job = lib.wait(self.stub, lib.create(self.stub, image=data).name)
            self.assertEqual((job.state, job.attempts), (pb.STATE_FAILED, 1), "and is not tried again")
            self.assertEqual(job.error.code, lib.grpc.StatusCode.INVALID_ARGUMENT.value[0])
            info = lib.message("google.rpc.ErrorInfo")()
            self.assertTrue(job.error.details[0].Unpack(info))
            self.assertEqual((info.reason, info.domain), ("IMAGE_UNDECODABLE", "pseg"))
            self.assertTrue(job.error.message)
            found = lib.failure(self.stub.FetchMasks, pb.FetchMasksRequest(name=job.name))
            self.assertFails(found, "FAILED_PRECONDITION", "JOB_FAILED")
            reply = self.stub.Segment(pb.SegmentRequest(job=lib.spec(data)), timeout=lib.CALL_S)
            self.assertEqual((reply.job.state, len(reply.masks)), (pb.STATE_FAILED, 0), "a reply, not a failed call")

    # ---- everything else ----

    def test_models(self):
        found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec(model="nothing-like-this")))
        self.assertFails(found, "NOT_FOUND", "MODEL_UNKNOWN", "job.model")
        self.assertEqual((found.resource.resource_type, found.resource.resource_name),
                         ("pseg.v1.Model", "nothing-like-this"))
        self.assertIn("known: empty", found.message)
        for bad in ("../etc", "a b", "x" * 64, "modèle"):
            self.refused(lib.spec(model=bad), "NAME_INVALID", "job.model", bad if len(bad) < 40 else "x" * 36 + "...",
                         "[A-Za-z0-9._-]{1,63}")

    def test_thresholds_and_encodings(self):
        for bad, shown in ((-0.25, "-0.25"), (1.0, "1"), (2.5, "2.5"), (math.inf, "inf"), (math.nan, "nan")):
            self.refused(lib.spec(mask_threshold=bad), "THRESHOLD_OUT_OF_RANGE", "job.mask_threshold", shown, "(0, 1)")
            for call, q in ((self.stub.Segment, pb.SegmentRequest(job=lib.spec())),
                            (self.stub.FetchMasks, pb.FetchMasksRequest(name="jobs/" + "0" * 32))):
                q.format.threshold = bad
                found = self.assertFails(lib.failure(call, q), "INVALID_ARGUMENT", "THRESHOLD_OUT_OF_RANGE",
                                         "format.threshold")
                self.assertEqual(found.metadata, {"value": shown, "limit": "(0, 1)"})
        for encoding in (6, 99, -1, 2**31 - 1):
            q = pb.SegmentRequest(job=lib.spec(), format=pb.MaskFormat(encoding=encoding))
            found = self.assertFails(lib.failure(self.stub.Segment, q), "INVALID_ARGUMENT",
                                     "MASK_ENCODING_UNSUPPORTED", "format.encoding")
            self.assertEqual(found.metadata, {"value": str(encoding), "limit": "0..5"})

    def test_labels(self):
        self.refused(lib.spec(labels={f"k{i}": "v" for i in range(17)}), "INVALID_ARGUMENT", "job.labels", "17", "16")
        self.refused(lib.spec(labels={"k": "v" * 256}), "INVALID_ARGUMENT", "job.labels", "256", "255")
        for bad in ("", "Key", "a b", "é", "x" * 64):
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec(labels={bad: "v"})))
            self.assertFails(found, "INVALID_ARGUMENT", "NAME_INVALID", "job.labels")

    def test_times(self):
        for seconds, nanos in ((1, 0), (-1, 0), (2**62, 0), (2**40, 0), (253402300799, 10**9), (253402300799, -1)):
            spec = lib.spec()
            spec.deadline.seconds, spec.deadline.nanos = seconds, nanos
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=spec))
            self.assertFails(found, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "job.deadline")
        for seconds in (0, 59, -60, 604801, 2**62):
            spec = lib.spec()
            spec.result_ttl.seconds = seconds
            self.refused(spec, "INVALID_ARGUMENT", "job.result_ttl", str(seconds), "60..604800")
        spec = lib.spec()
        spec.deadline.seconds = int(time.time()) + 10**8
        job = self.stub.CreateJob(pb.CreateJobRequest(job=spec), timeout=lib.CALL_S)
        self.assertAlmostEqual(job.deadline.seconds - job.create_time.seconds, 86400, delta=2)  # --max-age-ms

    def test_requests_without_a_job(self):
        for call, q in ((self.stub.CreateJob, pb.CreateJobRequest()), (self.stub.Segment, pb.SegmentRequest())):
            found = self.assertFails(lib.failure(call, q), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "job")
            self.assertEqual(found.metadata, {"value": "none", "limit": "required"})

    def test_messages_that_are_too_large(self):
        found = self.assertFails(self.raw(field(2, field(1, bytes(5 << 20)))), "INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
        self.assertEqual(found.metadata["limit"], str(4 << 20))
        self.assertGreater(int(found.metadata["value"]), 5 << 20)

    def test_bytes_that_are_no_message(self):
        for method in ("CreateJob", "Segment", "GetJob", "WaitJob", "ListJobs", "CancelJob", "BatchCheckImages"):
            for data in (b"\xff", b"\x0a\x7f", b"\x0b\x0b\x0b", b"\x0a\xff\xff\xff\xff\x0f", field(1, b"\xff\xfe")):
                found = self.raw(data, method)
                self.assertEqual(found.code.name, "INVALID_ARGUMENT")
                self.assertIn(found.reason, ("REQUEST_MALFORMED", "NAME_INVALID", "INVALID_ARGUMENT"), (method, data))
        found = self.raw(field(1, b"\xff\xfe") + field(2, b""), "CreateJob")
        self.assertFails(found, "INVALID_ARGUMENT", "REQUEST_MALFORMED", "request_id")
        deep = b""
        for _ in range(200):
            deep = field(2, deep)
        self.assertEqual(self.raw(deep).code.name, "INVALID_ARGUMENT")
        many = field(2, field(3, b"") * 400000)  # 800 kB that unpack to 400,000 prompts
        self.assertIn(self.raw(many).reason, ("TOO_MANY_PROMPTS", "IMAGE_MISSING", "REQUEST_MALFORMED"))

    def test_methods_that_do_not_exist(self):
        for path in (f"/{lib.SERVICE}/DeleteEverything", "/nobody/Nothing", "/"):
            call = self.cluster.channel(self.scheduler).unary_unary(path)
            found = lib.failure(call, b"")
            self.assertEqual((found.code.name, found.reason), ("UNIMPLEMENTED", "UNSUPPORTED"))


if __name__ == "__main__":
    lib.main()
