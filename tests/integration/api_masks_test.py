#!/usr/bin/env python3
"""From an image to masks in every encoding, with the embedded model: all encodings are one mask."""
import concurrent.futures
import json
import pathlib

import numpy

import lib_pseg as lib
from lib_pseg import pb

PHRASES = ("the small red circle", "the striped yellow circle", "a star")
ENCODINGS = {"png": 1, "rle": 2, "bits": 3, "polygon": 4, "float16": 5}


# ---- decoders of our own, from nothing but the words in pseg.proto ----

def of_png(mask):
    import io

    from PIL import Image
    image = Image.open(io.BytesIO(mask.data))
    assert image.mode == "L", image.mode
    a = numpy.asarray(image)
    assert set(numpy.unique(a)) <= {0, 255}
    return a == 255


def of_rle(mask):
    """COCO's compressed counts: base 32 with a continuation bit, from the third on as differences."""
    counts, at = [], 0
    while at < len(mask.data):
        x = k = 0
        more = True
        while more:
            c = mask.data[at] - 48
            assert 0 <= c < 64
            x |= (c & 31) << (5 * k)
            more = bool(c & 32)
            at, k = at + 1, k + 1
            if not more and c & 16:
                x |= -1 << (5 * k)
        counts.append(x + (counts[-2] if len(counts) > 2 else 0))
    assert min(counts) >= 0 and sum(counts) == mask.width * mask.height
    flat = numpy.repeat(numpy.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(mask.width, mask.height).T  # column by column


def of_bits(mask):
    stride = (mask.width + 7) // 8
    assert len(mask.data) == stride * mask.height
    rows = numpy.frombuffer(mask.data, numpy.uint8).reshape(mask.height, stride)
    bits = numpy.unpackbits(rows, axis=1, bitorder="big")
    assert not bits[:, mask.width:].any(), "padding is zero"
    return bits[:, :mask.width] == 1


def of_polygon(mask):
    """Even-odd along each row: a pixel is inside when an odd number of vertical edges lies to its left."""
    crossings = numpy.zeros((mask.height, mask.width + 1), int)
    for ring in json.loads(mask.data):
        assert len(ring) >= 8 and len(ring) % 2 == 0
        points = list(zip(ring[::2], ring[1::2]))
        area = 0
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
            area += x0 * y1 - x1 * y0
            assert x0 == x1 or y0 == y1, "edges of pixels"
            if x0 == x1:
                crossings[min(y0, y1):max(y0, y1), x0] += 1
        assert area != 0
    return numpy.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


def of_float16(mask):
    a = numpy.frombuffer(mask.data, "<f2").reshape(mask.height, mask.width).astype(numpy.float64)
    assert numpy.isfinite(a).all() and a.min() >= 0 and a.max() <= 1
    return a


DECODERS = {"png": of_png, "rle": of_rle, "bits": of_bits, "polygon": of_polygon}


class Masks(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--mask-threads", 3)
        cls.stub = cluster.stub(cls.scheduler)
        cls.worker = cluster.worker("scenes")
        made = lib.create(cls.stub, phrases=PHRASES, labels={"batch": "7"}, request_id="masks-1")
        assert made.state in (pb.STATE_QUEUED, pb.STATE_RUNNING), made
        cls.job = lib.wait(cls.stub, made.name)
        assert cls.job.state == pb.STATE_SUCCEEDED, cls.job

    def fetch(self, indexes=(), encoding="png", threshold=0.0):
        """{prompt index: Mask with all its data}, and the messages."""
        masks, messages = {}, []
        q = pb.FetchMasksRequest(name=self.job.name, prompt_indexes=indexes,
                                 format=pb.MaskFormat(encoding=ENCODINGS[encoding], threshold=threshold))
        for m in self.stub.FetchMasks(q, timeout=lib.CALL_S):
            messages.append(m)
            i = m.mask.prompt_index
            if i in masks:
                masks[i].data += m.mask.data
            else:
                masks[i] = m.mask
        return masks, messages

    def test_segment_is_all_in_one(self):
        for encoding in ENCODINGS:
            reply = self.stub.Segment(pb.SegmentRequest(
                job=lib.spec(phrases=PHRASES), format=pb.MaskFormat(encoding=ENCODINGS[encoding])), timeout=lib.START_S)
            self.assertEqual(reply.job.state, pb.STATE_SUCCEEDED, reply.job)
            self.assertFalse(reply.masks_omitted)
            self.assertEqual([m.prompt_index for m in reply.masks], [0, 1, 2])
            fetched, _ = self.fetch(encoding=encoding)
            for m in reply.masks:
                self.assertEqual(m.data, fetched[m.prompt_index].data, "the same as from another job of the same image")
        plain = self.stub.Segment(pb.SegmentRequest(job=lib.spec(phrases=PHRASES[:1])), timeout=lib.START_S)
        self.assertEqual(plain.masks[0].encoding, pb.MASK_ENCODING_PNG, "absent: PNG")
        self.assertEqual(plain.masks[0].threshold, 0.5, "at the job's threshold")

    def test_many_are_fetched_at_once(self):
        """Each gets what it asked for, whichever thread makes it."""
        alone = {e: {i: m.data for i, m in self.fetch(encoding=e)[0].items()} for e in ENCODINGS}
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = [(e, i, pool.submit(self.fetch, (i,), e)) for _ in range(4) for e in ENCODINGS for i in range(3)]
            for e, i, found in asked:
                masks, _ = found.result()
                self.assertEqual({i: alone[e][i]}, {k: m.data for k, m in masks.items()}, e)

    def test_a_known_image_costs_few_calls(self):
        """A Segment call asks Redis for no more than its submit, its claim, its result and its masks."""
        n = 20
        request = pb.SegmentRequest(job=lib.spec(phrases=PHRASES[:1]))
        self.stub.Segment(request, timeout=lib.START_S)
        with self.cluster.count_calls() as calls:
            for _ in range(n):
                self.assertEqual(len(self.stub.Segment(request, timeout=lib.CALL_S).masks), 1)
        self.assertEqual([calls[f] for f in ("submit", "publish", "masks", "get")], [n, n, n, 0])
        self.assertLess(calls["claim"], 1.5 * n, "one each, and one a second")

    def test_all_encodings_are_the_same_mask(self):
        for threshold in (0.0, 0.1, 0.5, 0.9):
            probabilities = {i: of_float16(m) for i, m in self.fetch(encoding="float16", threshold=threshold)[0].items()}
            at = threshold or 0.5
            first = None
            for encoding, decode in DECODERS.items():
                masks, messages = self.fetch(encoding=encoding, threshold=threshold)
                self.assertEqual(sorted(masks), [0, 1, 2])
                self.assertEqual([m.mask.prompt_index for m in messages if m.last_chunk], [0, 1, 2])
                decoded = {i: decode(m) for i, m in masks.items()}
                for i, m in masks.items():
                    self.assertEqual((m.width, m.height, m.encoding), (224, 224, ENCODINGS[encoding]))
                    self.assertAlmostEqual(m.threshold, at, places=6)
                    # The float16 are rounded: within half a step of the threshold either answer is right.
                    clear = numpy.abs(probabilities[i] - at) > 2.0 ** -10
                    self.assertTrue((decoded[i] == (probabilities[i] > at))[clear].all(), (encoding, threshold, i))
                    self.assertGreater(clear.mean(), 0.99)
                first = first or decoded
                for i in decoded:
                    self.assertTrue((decoded[i] == first[i]).all(), (encoding, threshold, i))
            if threshold == 0.0:
                self.assertTrue(all(first[i].any() and not first[i].all() for i in (0, 1)), "masks of something")

    def test_results_describe_the_masks(self):
        masks = {i: of_png(m) for i, m in self.fetch()[0].items()}
        self.assertEqual([r.prompt_index for r in self.job.results], [0, 1, 2])
        for r in self.job.results:
            ys, xs = numpy.nonzero(masks[r.prompt_index])
            self.assertEqual(r.area_px, len(ys))
            self.assertEqual(r.HasField("box"), len(ys) > 0)
            if len(ys):
                box = (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
                self.assertEqual((r.box.x, r.box.y, r.box.width, r.box.height), box, "tight")
            self.assertTrue(0 <= r.predicted_iou <= 1, r)
            self.assertFalse(r.truncated)
        self.assertGreater(self.job.results[0].predicted_iou, 0.5, "the example is an easy one")

    def test_the_job_tells_its_story(self):
        j = self.stub.GetJob(pb.GetJobRequest(name=self.job.name), timeout=lib.CALL_S)
        self.assertEqual(j, self.job)
        self.assertRegex(j.name, r"^jobs/[0-9a-f]{32}$")
        self.assertEqual((j.request_id, dict(j.labels), j.model, j.attempts), ("masks-1", {"batch": "7"}, "scenes", 1))
        self.assertEqual((j.image_width, j.image_height, j.mask_threshold), (224, 224, 0.5))
        self.assertEqual([p.text for p in j.prompts], list(PHRASES))
        times = [t.ToNanoseconds() for t in (j.create_time, j.start_time, j.finish_time, j.expire_time)]
        self.assertEqual(times, sorted(times))
        self.assertGreater(times[0], 1.7e18)
        self.assertEqual(round((times[3] - times[2]) / 1e9), 86400, "kept for a day")
        self.assertAlmostEqual((j.deadline.ToNanoseconds() - times[0]) / 1e9, 86400, delta=2)
        stages = {s.stage: s.duration.ToNanoseconds() for s in j.stages}
        self.assertEqual([s.stage for s in j.stages], ["queue", "fetch", "decode_image", "preprocess", "encode_image",
                                                       "encode_text", "decode_mask"])
        self.assertTrue(all(v >= 0 for v in stages.values()) and stages["encode_image"] > 0, stages)
        self.assertLess(sum(stages.values()), times[2] - times[0] + 1e9)
        r = j.receipt
        self.assertRegex(r.model_digest, r"^[0-9a-f]{64}$")
        self.assertRegex(r.kernel_digest, r"^[0-9a-f]{64}$")
        self.assertTrue(r.device and r.driver and r.worker, r)
        self.assertEqual((r.model, r.precision, r.worker_version), ("scenes", "fp32", r.scheduler_version))
        self.assertRegex(r.worker_version, r"^\d+\.\d+\.\d+")
        self.assertFalse(j.HasField("error") or j.cancel_requested)
        models = self.stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S).models
        self.assertEqual([(m.name, m.digest, m.workers, m.is_default) for m in models],
                         [("scenes", r.model_digest, 1, True)])

    def test_some_masks_in_the_order_asked(self):
        _, messages = self.fetch(indexes=(2, 0, 2))
        self.assertEqual([m.mask.prompt_index for m in messages if m.last_chunk], [2, 0, 2])
        found = self.assertFails(lib.failure(self.stub.FetchMasks, pb.FetchMasksRequest(
            name=self.job.name, prompt_indexes=[0, 3])), "NOT_FOUND", "MASK_NOT_FOUND", "prompt_indexes[1]")
        self.assertEqual((found.resource.resource_type, found.resource.resource_name),
                         ("pseg.v1.Mask", f"{self.job.name}/masks/3"))
        self.assertEqual(found.metadata["limit"], "0..2")
        self.assertFails(lib.failure(self.stub.FetchMasks, pb.FetchMasksRequest(
            name=self.job.name, prompt_indexes=[0] * 65)), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "prompt_indexes")

    def test_large_masks_come_in_chunks(self):
        """A photo of 1500 x 1000 px: float16 is 3 MB, in chunks of at most 1 MiB."""
        made = lib.create(self.stub, image=lib.png(1500, 1000), phrases=("noise",))
        job = lib.wait(self.stub, made.name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED, job)
        parts = list(self.stub.FetchMasks(pb.FetchMasksRequest(
            name=job.name, format=pb.MaskFormat(encoding=pb.MASK_ENCODING_FLOAT16)), timeout=lib.CALL_S))
        self.assertEqual([len(p.mask.data) for p in parts], [1 << 20, 1 << 20, 3000000 - (2 << 20)])
        self.assertEqual([p.last_chunk for p in parts], [False, False, True])
        self.assertTrue(all((p.mask.width, p.mask.height, p.mask.threshold) == (1500, 1000, 0) for p in parts))

    def test_masks_that_do_not_fit_a_reply(self):
        """Seven masks of 3 MB are over 16 MiB: Segment leaves them out and says so."""
        reply = self.stub.Segment(pb.SegmentRequest(
            job=lib.spec(image=lib.png(1500, 1000), phrases=[f"noise {i}" for i in range(7)]),
            format=pb.MaskFormat(encoding=pb.MASK_ENCODING_FLOAT16)), timeout=lib.START_S)
        self.assertEqual((reply.job.state, reply.masks_omitted, len(reply.masks)), (pb.STATE_SUCCEEDED, True, 0))

    def test_masks_that_would_come_too_late_or_be_too_many(self):
        """32 masks of 6 megapixels: 400 MB as float16, and long to make as PNG."""
        rows = b"\0" * (2500 * 7501)
        made = lib.create(self.stub, image=lib.png_of(2500, 2500, rows), phrases=["red"] * 32, request_id="large")
        self.assertEqual(lib.wait(self.stub, made.name).state, pb.STATE_SUCCEEDED)
        again = pb.SegmentRequest(request_id="large", job=lib.spec(made.image_sha256, phrases=["red"] * 32))
        again.format.encoding = pb.MASK_ENCODING_FLOAT16
        reply = self.stub.Segment(again, timeout=lib.CALL_S)
        self.assertEqual((reply.job.name, reply.job.state, reply.masks_omitted, len(reply.masks)),
                         (made.name, pb.STATE_SUCCEEDED, True, 0))
        again.format.encoding = pb.MASK_ENCODING_PNG
        reply, _ = lib.timely(self.stub.Segment, again)  # a fast machine makes them all in time
        self.assertEqual((reply.job.state, len(reply.masks)),
                         (pb.STATE_SUCCEEDED, 0 if reply.masks_omitted else 32))
        parts = self.stub.FetchMasks(pb.FetchMasksRequest(
            name=made.name, format=pb.MaskFormat(encoding=pb.MASK_ENCODING_FLOAT16)), timeout=lib.START_S)
        for part in parts:
            if part.last_chunk:
                break
        parts.cancel()
        text = pathlib.Path(f"/proc/{self.scheduler.child.pid}/status").read_text()
        status = dict(line.split(":", 1) for line in text.splitlines())
        self.assertLess(int(status["VmHWM"].split()[0]), 400000, "kB: the scheduler never holds them all")

    def test_a_phrase_over_the_models_tokens(self):
        job = lib.wait(self.stub, lib.create(self.stub, phrases=("red " * 250, "red circle")).name)
        self.assertEqual([r.truncated for r in job.results], [True, False])


if __name__ == "__main__":
    lib.main()
