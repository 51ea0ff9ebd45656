#!/usr/bin/env python3
"""The Open Inference Protocol: the same masks as by Segment, errors by the house's reasons, and nothing left
behind by clients that go away. api_triton_test.py has Triton's own client."""
import hashlib
import struct
import threading

import grpc
import numpy

import lib_pseg as lib
from lib_pseg import pb

OIP = "inference.GRPCInferenceService"
PHRASES = ("the small red circle", "a star")


def new(kind, **kw):
    return lib.message(f"inference.{kind}")(**kw)


def raw_of(elements):
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def split(raw):
    out = []
    while raw:
        n = struct.unpack_from("<I", raw)[0]
        out.append(raw[4:4 + n])
        raw = raw[4 + n:]
    return out


def request(image=lib.SCENE, phrases=PHRASES, raw=True, outputs=(), shapes=None, **kw):
    """phrases: text or bytes; parameters: text, numbers."""
    q = new("ModelInferRequest", model_name=kw.pop("model", ""), id=kw.pop("id", ""),
            model_version=kw.pop("version", ""))
    for key, value in kw.items():
        which = {str: "string_param", float: "double_param", int: "int64_param", bool: "bool_param"}[type(value)]
        setattr(q.parameters[key], which, value)
    elements = {}
    if image is not None:
        elements["IMAGE"] = [image]
    if phrases is not None:
        elements["PROMPTS"] = [p.encode() if isinstance(p, str) else p for p in phrases]
    for name, values in elements.items():
        t = q.inputs.add(name=name, datatype="BYTES", shape=(shapes or {}).get(name, [len(values)]))
        if raw:
            q.raw_input_contents.append(raw_of(values))
        else:
            t.contents.bytes_contents.extend(values)
    for name in outputs:
        q.outputs.add(name=name)
    return q


def arrays(reply):
    """name -> an array, or the elements of BYTES."""
    out = {}
    assert len(reply.outputs) == len(reply.raw_output_contents)
    for t, raw in zip(reply.outputs, reply.raw_output_contents):
        if t.datatype == "BYTES":
            out[t.name] = split(raw)
            assert list(t.shape) == [len(out[t.name])]
        else:
            kind = {"UINT8": "<u1", "FP32": "<f4", "INT32": "<i4"}[t.datatype]
            out[t.name] = numpy.frombuffer(raw, kind).reshape(list(t.shape))
    return out


class OpenInference(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler()
        cls.stub = cluster.stub(cls.scheduler)
        cls.oip = cluster.stub(cls.scheduler, service=OIP)
        cluster.worker("scenes")
        cls.register(cluster)

    @staticmethod
    def register(cluster):
        """A model whose worker is the test: its jobs wait. It counts as live for 30 s."""
        cluster.fcall("register", "hand", 600000, "empty", "d" * 64, "a device", "0.1", "")

    def infer(self, *args, **kw):
        return self.oip.ModelInfer(request(*args, **kw), timeout=lib.START_S)

    def segment(self, encoding, **kw):
        return self.stub.Segment(pb.SegmentRequest(job=lib.spec(phrases=PHRASES, **kw),
                                                   format=pb.MaskFormat(encoding=encoding)), timeout=lib.START_S)

    def test_masks_are_those_of_segment(self):
        bits = self.segment(pb.MASK_ENCODING_PACKED_BITS)
        expected = numpy.stack([numpy.unpackbits(numpy.frombuffer(m.data, "u1").reshape(m.height, -1), axis=1)[:, :m.width]
                                for m in bits.masks])
        for raw in (True, False):
            reply = self.infer(raw=raw, id="mine")
            found = arrays(reply)
            self.assertEqual([t.name for t in reply.outputs], ["MASKS", "IOU", "BOXES"])
            self.assertTrue((found["MASKS"] == expected).all() and expected.any())
            self.assertEqual(found["IOU"].tolist(), [numpy.float32(r.predicted_iou) for r in bits.job.results])
            self.assertEqual(found["BOXES"].tolist(), [[r.box.x, r.box.y, r.box.width, r.box.height] for r in bits.job.results])
            self.assertEqual((reply.id, reply.model_name, reply.model_version), ("mine", "scenes", "1"))
            job = self.stub.GetJob(pb.GetJobRequest(name=reply.parameters["job"].string_param), timeout=lib.CALL_S)
            self.assertEqual(job.state, pb.STATE_SUCCEEDED)

    def test_what_triton_says_of_streams_means_nothing_here(self):
        """Triton's clients since 2.40 send it with each call, streams or not."""
        for value in (False, True):
            self.assertEqual(len(self.infer(triton_enable_empty_final_response=value).outputs), 3)

    def test_encodings_outputs_and_threshold(self):
        for name, encoding in (("png", pb.MASK_ENCODING_PNG), ("rle", pb.MASK_ENCODING_COCO_RLE)):
            expected = self.segment(encoding, mask_threshold=0.3)
            found = arrays(self.infer(outputs=["BOXES", "MASKS"], mask_encoding=name, mask_threshold=0.3))
            self.assertEqual(found["MASKS"], [m.data for m in expected.masks])
            self.assertEqual(list(found), ["BOXES", "MASKS"])
        only = self.infer(outputs=["IOU"], mask_threshold="0.3", shapes={"PROMPTS": [1, 2], "IMAGE": [1, 1]})
        self.assertEqual([(t.name, t.datatype, list(t.shape)) for t in only.outputs], [("IOU", "FP32", [2])])

    def test_an_uploaded_image(self):
        sha = hashlib.sha256(lib.SCENE).hexdigest()
        self.stub.UploadImage(iter([pb.UploadImageRequest(header=pb.UploadHeader(sha256=sha, size_bytes=len(lib.SCENE))),
                                    pb.UploadImageRequest(chunk=lib.SCENE)]), timeout=lib.CALL_S)
        self.assertEqual(arrays(self.infer(image=None, image_sha256=sha))["MASKS"].shape, (2, 224, 224))

    def test_what_is_served(self):
        self.assertTrue(self.oip.ServerLive(new("ServerLiveRequest"), timeout=lib.CALL_S).live)
        self.assertTrue(self.oip.ServerReady(new("ServerReadyRequest"), timeout=lib.CALL_S).ready)
        about = self.oip.ServerMetadata(new("ServerMetadataRequest"), timeout=lib.CALL_S)
        self.assertEqual(about.name, "pseg")
        self.register(self.cluster)
        for name, version, ready in (("scenes", "", True), ("", "1", True), ("empty", "", True), ("none", "1", False)):
            q = new("ModelReadyRequest", name=name, version=version)
            self.assertEqual(self.oip.ModelReady(q, timeout=lib.CALL_S).ready, ready, name)
        m = self.oip.ModelMetadata(new("ModelMetadataRequest", name="scenes"), timeout=lib.CALL_S)
        self.assertEqual((m.name, list(m.versions), m.platform), ("scenes", ["1"], "pseg"))
        self.assertEqual([(t.name, t.datatype, list(t.shape)) for t in (*m.inputs, *m.outputs)],
                         [("IMAGE", "BYTES", [1]), ("PROMPTS", "BYTES", [-1]), ("MASKS", "UINT8", [-1, -1, -1]),
                          ("IOU", "FP32", [-1]), ("BOXES", "INT32", [-1, 4])])
        c = self.oip.ModelConfig(new("ModelConfigRequest", name="scenes"), timeout=lib.CALL_S).config
        self.assertEqual((c.name, c.platform, c.max_batch_size), ("scenes", "pseg", 0))
        self.assertEqual([(t.name, t.data_type, list(t.dims)) for t in (*c.input, *c.output)],
                         [("IMAGE", 13, [1]), ("PROMPTS", 13, [-1]), ("MASKS", 2, [-1, -1, -1]), ("IOU", 11, [-1]),
                          ("BOXES", 8, [-1, 4])])
        found = lib.failure(self.oip.ModelConfig, new("ModelConfigRequest", name="none"))
        self.assertFails(found, "NOT_FOUND", "MODEL_UNKNOWN", "name")
        found = lib.failure(self.oip.ModelMetadata, new("ModelMetadataRequest", name="none"))
        self.assertFails(found, "NOT_FOUND", "MODEL_UNKNOWN", "name")
        self.assertEqual(found.resource.resource_name, "none")
        found = lib.failure(self.oip.ModelReady, new("ModelReadyRequest", name="scenes", version="2"))
        self.assertFails(found, "NOT_FOUND", "MODEL_UNKNOWN", "version")

    def test_mistakes(self):
        jpeg = b"\xff\xd8\xff\xe0" + b"x" * (3 << 20)
        cases = [  # request, code, reason, field
            (request(image=None), "INVALID_ARGUMENT", "IMAGE_MISSING", "inputs"),
            (request(image=b""), "INVALID_ARGUMENT", "IMAGE_MISSING", "inputs[0]"),
            (request(image=b"no image at all"), "INVALID_ARGUMENT", "IMAGE_FORMAT_UNSUPPORTED", "inputs[0]"),
            (request(image=jpeg), "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "inputs[0]"),
            (request(phrases=None), "INVALID_ARGUMENT", "PROMPT_MISSING", "inputs"),
            (request(phrases=[]), "INVALID_ARGUMENT", "PROMPT_MISSING", "inputs[1]"),
            (request(phrases=["a", " "]), "INVALID_ARGUMENT", "PROMPT_EMPTY", "inputs[1].contents[1]"),
            (request(phrases=["a", b"\xff"]), "INVALID_ARGUMENT", "PROMPT_NOT_TEXT", "inputs[1].contents[1]"),
            (request(phrases=[b"a\0b"]), "INVALID_ARGUMENT", "PROMPT_NOT_TEXT", "inputs[1].contents[0]"),
            (request(phrases=["a"] * 65), "INVALID_ARGUMENT", "TOO_MANY_PROMPTS", "inputs[1]"),
            (request(phrases=["a"] * 4097), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"),
            (request(shapes={"PROMPTS": [3]}), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"),
            (request(shapes={"PROMPTS": [-1, -2]}), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"),
            (request(shapes={"IMAGE": [1 << 62, 4]}), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[0]"),
            (request(model="none"), "NOT_FOUND", "MODEL_UNKNOWN", "model_name"),
            (request(model="a b"), "INVALID_ARGUMENT", "NAME_INVALID", "model_name"),
            (request(version="2"), "NOT_FOUND", "MODEL_UNKNOWN", "model_version"),
            (request(outputs=["LOGITS"]), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "outputs[0]"),
            (request(outputs=["IOU", "IOU"]), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "outputs[1]"),
            (request(mask_encoding="jpeg"), "INVALID_ARGUMENT", "MASK_ENCODING_UNSUPPORTED", "parameters.mask_encoding"),
            (request(mask_encoding=1), "INVALID_ARGUMENT", "MASK_ENCODING_UNSUPPORTED", "parameters.mask_encoding"),
            (request(mask_threshold=1.0), "INVALID_ARGUMENT", "THRESHOLD_OUT_OF_RANGE", "parameters.mask_threshold"),
            (request(mask_threshold=0.0), "INVALID_ARGUMENT", "THRESHOLD_OUT_OF_RANGE", "parameters.mask_threshold"),
            (request(mask_threshold="x"), "INVALID_ARGUMENT", "THRESHOLD_OUT_OF_RANGE", "parameters.mask_threshold"),
            (request(mask_threshold=True), "INVALID_ARGUMENT", "THRESHOLD_OUT_OF_RANGE", "parameters.mask_threshold"),
            (request(timeout=0), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "parameters.timeout"),
            (request(timeout="soon"), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "parameters.timeout"),
            (request(triton_enable_empty_final_response="yes"), "INVALID_ARGUMENT", "INVALID_ARGUMENT",
             "parameters.triton_enable_empty_final_response"),
            (request(sequence_id=1), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "parameters.sequence_id"),
            (request(image_sha256="a" * 64), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[0]"),
            (request(image=None, image_sha256="a" * 63), "INVALID_ARGUMENT", "NAME_INVALID", "parameters.image_sha256"),
            (request(image=None, image_sha256="b" * 64), "FAILED_PRECONDITION", "IMAGE_NOT_HELD", "parameters.image_sha256"),
        ]
        q = request()
        q.inputs[0].datatype = "UINT8"
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[0]"))
        q = request()
        q.inputs[1].name = "PROMPT"
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"))
        q = request()
        q.inputs[1].name = "IMAGE"
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"))
        q = request()
        q.inputs[0].parameters["classification"].int64_param = 1
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[0]"))
        q = request()
        q.raw_input_contents.pop()
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "raw_input_contents"))
        q = request()
        q.inputs[1].contents.bytes_contents.append(b"twice")
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"))
        for cut in (1, 3, 4, len(raw_of([b"a star"])) - 1):
            q = request()
            q.raw_input_contents[1] = raw_of([b"a star"])[:cut]
            cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"))
        q = request()
        q.raw_input_contents[1] = b"\xff\xff\xff\xffa star"
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "inputs[1]"))
        q = request()
        q.parameters["timeout"].SetInParent()
        cases.append((q, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "parameters.timeout"))
        for q, code, reason, field in cases:
            with self.subTest(f"{reason} {field}"):
                self.assertFails(lib.failure(self.oip.ModelInfer, q), code, reason, field)

    def test_a_job_that_fails_fails_the_call(self):
        broken = lib.SCENE[:100] + b"\0" * 200
        found = self.assertFails(lib.failure(self.oip.ModelInfer, request(image=broken), timeout=lib.START_S),
                                 "INVALID_ARGUMENT", "IMAGE_UNDECODABLE")
        self.assertRegex(found.message, r"^jobs/[0-9a-f]{32} failed: ")

    def newest(self):
        jobs = self.stub.ListJobs(pb.ListJobsRequest(page_size=1), timeout=lib.CALL_S).jobs
        return jobs[0] if jobs else pb.Job()

    def ends(self, name, state):
        self.assertEqual(lib.wait(self.stub, name).state, state)

    def test_nobody_waits_any_more(self):
        found = self.assertFails(lib.failure(self.oip.ModelInfer, request(model="empty"), timeout=2),
                                 "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        job = self.newest()
        self.assertIn(job.name, found.message)
        self.ends(job.name, pb.STATE_CANCELLED)
        before = self.newest().name
        call = self.oip.ModelInfer.future(request(model="empty"))
        lib.until("the job", lambda: self.newest().name != before)
        name = self.newest().name
        call.cancel()
        self.ends(name, pb.STATE_CANCELLED)
        found = self.assertFails(lib.failure(self.oip.ModelInfer, request(model="empty", timeout=300000), timeout=lib.START_S),
                                 "DEADLINE_EXCEEDED", "JOB_EXPIRED")
        self.ends(self.newest().name, pb.STATE_EXPIRED)

    def test_a_job_is_cancelled_by_somebody_else(self):
        before = self.newest().name
        call = self.oip.ModelInfer.future(request(model="empty"), timeout=lib.START_S)
        lib.until("the job", lambda: self.newest().name != before)
        self.stub.CancelJob(pb.CancelJobRequest(name=self.newest().name), timeout=lib.CALL_S)
        self.assertFails(lib.failure(lambda timeout: call.result()), "CANCELLED", "JOB_CANCELLED")

    def test_the_scheduler_stops(self):
        other = self.cluster.scheduler()
        before = self.newest().name
        call = self.cluster.stub(other, service=OIP).ModelInfer.future(request(model="empty"))
        lib.until("the job", lambda: self.newest().name != before)
        name = self.newest().name
        stopped = threading.Thread(target=other.stop)
        stopped.start()
        self.assertFails(lib.failure(lambda timeout: call.result()), "UNAVAILABLE", "DRAINING")
        stopped.join()
        self.ends(name, pb.STATE_CANCELLED)

    def test_masks_too_large_for_a_reply(self):
        large = lib.png(2400, 2400)
        phrases = ("a", "b", "c")
        q = request(image=large, phrases=phrases, outputs=["IOU", "MASKS"])
        found = self.assertFails(lib.failure(self.oip.ModelInfer, q, timeout=lib.START_S), "INVALID_ARGUMENT",
                                 "INVALID_ARGUMENT", "outputs[1]")
        self.assertIn("mask_encoding", found.message)
        self.assertEqual(len(arrays(self.infer(image=large, phrases=phrases, mask_encoding="png"))["MASKS"]), 3)
        self.assertEqual(arrays(self.infer(image=large, phrases=phrases[:2]))["MASKS"].shape, (2, 2400, 2400))

    def test_keys_hold_here_too(self):
        keys = self.cluster.folder / "oip-keys"
        keys.write_text(f"{hashlib.sha256(b'k').hexdigest()} team\n")
        guarded = self.cluster.stub(self.cluster.scheduler("--keys", keys), service=OIP)
        self.assertTrue(guarded.ServerLive(new("ServerLiveRequest"), timeout=lib.CALL_S).live)
        self.assertTrue(guarded.ServerReady(new("ServerReadyRequest"), timeout=lib.CALL_S).ready)
        for call, q in ((guarded.ModelInfer, request()), (guarded.ModelReady, new("ModelReadyRequest", name="scenes")),
                        (guarded.ServerMetadata, new("ServerMetadataRequest"))):
            self.assertFails(lib.failure(call, q), "UNAUTHENTICATED", "UNAUTHENTICATED")
        reply = guarded.ModelInfer(request(), timeout=lib.START_S, metadata=[("authorization", "Bearer k")])
        self.assertFails(lib.failure(self.stub.GetJob, pb.GetJobRequest(name=reply.parameters["job"].string_param)),
                         "NOT_FOUND", "JOB_NOT_FOUND")


if __name__ == "__main__":
    lib.main()
