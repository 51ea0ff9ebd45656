#!/usr/bin/env python3
"""UploadImage and BatchCheckImages: what is stored, what is refused, and what is left behind."""
import hashlib
import threading

import lib_pseg as lib
from lib_pseg import pb

MIB = 1 << 20


def sha(data):
    return hashlib.sha256(data).hexdigest()


def header(data, size=None, digest=None):
    return pb.UploadImageRequest(header=pb.UploadHeader(sha256=digest or sha(data),
                                                        size_bytes=len(data) if size is None else size))


def chunk(data):
    return pb.UploadImageRequest(chunk=data)


def parts(data, n=50000, **kw):
    return [header(data, **kw)] + [chunk(data[i:i + n]) for i in range(0, len(data), n)]


def noise(n, seed=0):
    """n bytes that begin as a PNG and are of no other test."""
    return lib.SCENE[:16] + lib.numpy.random.default_rng(seed + n).bytes(n - 16)


class Images(lib.Test):
    options = ()

    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--max-image-bytes", "8M",
                                          "--max-upload-bytes", "20M", *cls.options)
        cls.stub = cluster.stub(cls.scheduler)

    def upload(self, messages):
        return self.stub.UploadImage(iter(messages), timeout=lib.CALL_S)

    def refused(self, messages, code, reason, field):
        return self.assertFails(lib.failure(self.stub.UploadImage, iter(messages)), code, reason, field)

    def held(self, *digests):
        return self.stub.BatchCheckImages(pb.BatchCheckImagesRequest(sha256=digests), timeout=lib.CALL_S).images

    def nothing_of(self, data):
        self.assertEqual(self.held(sha(data))[0].size_bytes, 0)
        self.assertEqual(self.cluster.redis_cli("--scan", "--pattern", f"*{sha(data)}*"), "", "nothing is left in Redis")

    def has_room(self, data):
        try:
            return self.upload(parts(data, n=MIB)).size_bytes == len(data)
        except lib.grpc.RpcError as e:
            self.assertIn(lib.Failure(e).reason, ("SERVER_BUSY", "BROKER_UNAVAILABLE"))
            return False


class Uploads(Images):
    @classmethod
    def setup(cls, cluster):
        super().setup(cluster)
        cluster.worker("empty")

    def test_upload_then_a_job_by_its_sha256(self):
        data = lib.png(200, 100, seed=1)
        image = self.upload(parts(data, n=100))
        self.assertEqual((image.sha256, image.size_bytes, image.existed), (sha(data), len(data), False))
        self.assertTrue(image.HasField("expire_time"))
        job = lib.wait(self.stub, lib.create(self.stub, image=sha(data)).name)
        self.assertEqual((job.state, job.image_sha256, job.image_width, job.image_height),
                         (pb.STATE_SUCCEEDED, sha(data), 200, 100))

    def test_the_same_image_twice(self):
        data = noise(300000)
        first = self.upload(parts(data))
        again = self.upload(parts(data))
        self.assertEqual((first.existed, again.existed, again.size_bytes), (False, True, len(data)))
        self.assertGreaterEqual(again.expire_time.ToNanoseconds(), first.expire_time.ToNanoseconds())
        self.assertTrue(self.upload([header(data)]).existed, "the header alone is enough")
        endless = threading.Event()

        def hanging():
            yield header(data)
            endless.wait(lib.CALL_S)
        self.assertTrue(self.upload(hanging()).existed, "answered before the client has said all")
        endless.set()

    def test_an_inline_image_can_be_referred_to(self):
        data = lib.png(20, 20, seed=2)
        lib.create(self.stub, image=data)
        self.assertTrue(self.upload([header(data)]).existed)

    def test_which_images_are_held(self):
        data, other = noise(1000), sha(b"never sent")
        self.assertEqual([i.existed for i in self.held(sha(data), other)], [False, False])
        self.upload(parts(data))
        said = self.held(other, sha(data), other, sha(data))
        self.assertEqual([(i.sha256, i.size_bytes, i.existed, i.HasField("expire_time")) for i in said],
                         [(other, 0, False, False), (sha(data), 1000, True, True)] * 2, "in the order asked")
        self.assertEqual(len(self.held(*[sha(data)] * 1000)), 1000)
        check = self.stub.BatchCheckImages
        for n in (0, 1001):
            found = self.assertFails(lib.failure(check, pb.BatchCheckImagesRequest(sha256=[other] * n)),
                                     "INVALID_ARGUMENT", "INVALID_ARGUMENT", "sha256")
            self.assertEqual(found.metadata, {"value": str(n), "limit": "1..1000"})
        self.assertFails(lib.failure(check, pb.BatchCheckImagesRequest(sha256=[other, other.upper()])),
                         "INVALID_ARGUMENT", "NAME_INVALID", "sha256[1]")

    def test_a_job_of_an_image_that_is_not_held(self):
        digest = sha(b"nobody has this")
        found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec(digest)))
        self.assertFails(found, "FAILED_PRECONDITION", "IMAGE_NOT_HELD", "job.sha256")
        self.assertEqual((found.resource.resource_type, found.resource.resource_name), ("pseg.v1.Image", digest))

    def test_bytes_that_do_not_match(self):
        data = noise(200001)
        wrong = sha(b"other")
        found = self.refused(parts(data, digest=wrong), "INVALID_ARGUMENT", "UPLOAD_HASH_MISMATCH", "header.sha256")
        self.assertEqual(found.metadata["value"], wrong)
        self.assertIn(sha(data), found.message)
        self.assertEqual(self.held(wrong)[0].size_bytes, 0)
        self.nothing_of(data)

    def test_sizes_that_do_not_match(self):
        data = noise(100002)
        found = self.refused(parts(data, size=len(data) + 1), "INVALID_ARGUMENT", "UPLOAD_INCOMPLETE",
                             "header.size_bytes")
        self.assertEqual(found.metadata, {"value": "100002", "limit": "100003"})
        found = self.refused(parts(data, size=len(data) - 1), "INVALID_ARGUMENT", "UPLOAD_INCOMPLETE", "chunk")
        self.assertEqual(found.metadata, {"value": "100002", "limit": "100001"})
        self.refused([header(data)], "INVALID_ARGUMENT", "UPLOAD_INCOMPLETE", "header.size_bytes")
        self.nothing_of(data)

    def test_messages_out_of_order(self):
        data = noise(100003)
        for messages, field in (([chunk(data[:100])], "part"), ([], "part"), ([pb.UploadImageRequest()], "part"),
                                ([header(data), header(data)], "part"),
                                (parts(data)[:2] + [header(data)], "part"),
                                (parts(data)[:2] + [pb.UploadImageRequest()], "part")):
            self.refused(messages, "INVALID_ARGUMENT", "UPLOAD_OUT_OF_ORDER", field)
        swapped = parts(data)
        swapped[1], swapped[2] = swapped[2], swapped[1]
        found = lib.failure(self.stub.UploadImage, iter(swapped))
        self.assertIn(found.reason, ("UPLOAD_HASH_MISMATCH", "IMAGE_FORMAT_UNSUPPORTED"))
        self.nothing_of(data)

    def test_chunks_of_a_wrong_size(self):
        data = noise(2 * MIB)
        self.refused([header(data), chunk(b"")], "INVALID_ARGUMENT", "REQUEST_TOO_LARGE", "chunk")
        found = self.refused([header(data), chunk(data[:MIB + 1])], "INVALID_ARGUMENT", "REQUEST_TOO_LARGE", "chunk")
        self.assertEqual(found.metadata, {"value": str(MIB + 1), "limit": f"1..{MIB}"})
        self.nothing_of(data)
        self.assertEqual(self.upload(parts(data, n=MIB)).size_bytes, 2 * MIB, "1 MiB itself is fine")

    def test_headers_that_are_refused(self):
        data = noise(100)
        found = self.refused([header(data, size=8 * MIB + 1)], "INVALID_ARGUMENT", "IMAGE_TOO_LARGE",
                             "header.size_bytes")
        self.assertEqual(found.metadata, {"value": str(8 * MIB + 1), "limit": str(8 * MIB)})
        self.refused([header(data, size=2**64 - 1)], "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "header.size_bytes")
        self.refused([header(data, size=0)], "INVALID_ARGUMENT", "IMAGE_MISSING", "header.size_bytes")
        for bad in ("x", sha(data).upper(), sha(data) + "0", sha(data)[:-1]):
            self.refused([header(data, digest=bad)], "INVALID_ARGUMENT", "NAME_INVALID", "header.sha256")

    def test_what_is_no_image(self):
        data = b"GIF89a" + bytes(500)
        self.refused(parts(data), "INVALID_ARGUMENT", "IMAGE_FORMAT_UNSUPPORTED", "chunk")
        self.nothing_of(data)

    def test_a_first_chunk_of_a_few_bytes(self):
        """The format is told from the first 12 bytes, however they come."""
        for seed in (3, 4):
            data = lib.png(30, 30, seed=seed)
            n = seed - 2
            image = self.upload([header(data)] + [chunk(data[i:i + n]) for i in range(0, 20 // n * n, n)] +
                                [chunk(data[20 // n * n:])])
            self.assertEqual(image.size_bytes, len(data))
        data = b"GIF89a" + bytes(500)
        self.refused(parts(data, n=1)[:40], "INVALID_ARGUMENT", "IMAGE_FORMAT_UNSUPPORTED", "chunk")

    def test_a_client_that_goes_away_leaves_nothing(self):
        """12 uploads of 8 MB under a limit of 20 MB under way: each must give its room back."""
        for seed in range(12):
            data = noise(8 * 10**6, seed)
            gone, sent = threading.Event(), threading.Event()

            def hanging(data=data, gone=gone, sent=sent):
                yield header(data)
                yield chunk(data[:MIB])
                sent.set()
                gone.wait(lib.CALL_S)
            call = self.stub.UploadImage.future(hanging(), timeout=lib.CALL_S)
            self.assertTrue(sent.wait(lib.CALL_S))
            call.cancel()
            gone.set()
            self.assertTrue(call.cancelled())
            self.nothing_of(data)
        lib.until("room", lambda: self.has_room(noise(8 * 10**6, 12)), 20)

    def test_uploads_under_way_are_bounded(self):
        gone = threading.Event()
        calls = []
        for seed in (100, 101):
            data, asked = noise(8 * 10**6, seed), threading.Event()

            def hanging(data=data, asked=asked):
                yield header(data)
                yield chunk(data[:MIB])
                yield chunk(data[MIB:2 * MIB])
                asked.set()
                gone.wait(lib.CALL_S)
            calls.append(self.stub.UploadImage.future(hanging(), timeout=lib.CALL_S))
            self.assertTrue(asked.wait(lib.CALL_S))
        third = noise(8 * 10**6, 102)

        def busy():
            found = lib.failure(self.stub.UploadImage, iter(parts(third, n=MIB)))
            return found if found.reason == "SERVER_BUSY" else None
        found = lib.until("the third upload being refused", busy, 10)
        self.assertEqual((found.code.name, found.retry_s), ("RESOURCE_EXHAUSTED", 1.0))
        self.assertEqual(found.metadata["limit"], str(20 * MIB))
        for call in calls:
            call.cancel()
        gone.set()
        del call, calls
        lib.until("room for the third", lambda: self.has_room(third), 20)


class Shares(lib.Test):
    """Where callers have names, none of them gets all the room, however slowly it sends."""
    @classmethod
    def setup(cls, cluster):
        path = cluster.folder / "keys"
        path.write_text("".join(f"{sha(k.encode())} {k}\n" for k in ("slow", "other", "third")))
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--max-image-bytes", "8M", "--max-upload-bytes",
                                          "20M", "--stall-ms", "600s", "--keys", path)
        cls.stub = cluster.stub(cls.scheduler)

    def upload(self, tenant, messages):
        return self.stub.UploadImage.future(iter(messages), timeout=4 * lib.CALL_S,
                                            metadata=(("authorization", f"Bearer {tenant}"),))

    def held_up(self, tenant, data, gone):
        """An upload that has been taken, and never ends."""
        taken = threading.Event()

        def messages():
            yield header(data)
            for at in range(0, 3 * MIB, MIB):  # the next message is asked for when one before it has been read
                yield chunk(data[at:at + MIB])
            taken.set()
            gone.wait(4 * lib.CALL_S)
        call = self.upload(tenant, messages())
        lib.until("an upload that is taken or refused", lambda: taken.is_set() or call.done())
        return call

    def test_a_slow_tenant_leaves_room(self):
        gone, calls = threading.Event(), []
        for seed in range(8):
            calls.append(self.held_up("slow", noise(5 * 10**6, seed), gone))
        lib.until("the share being full", lambda: sum(c.done() for c in calls) == 6)
        found = lib.Failure(next(c for c in calls if c.done()).exception())
        self.assertEqual((found.code.name, found.reason, found.retry_s), ("RESOURCE_EXHAUSTED", "SERVER_BUSY", 1.0))
        self.assertEqual(found.metadata, {"value": "5000000", "limit": str(20 * MIB // 3 * 2)})
        self.assertIn("tenant slow", found.message)
        for seed, tenant in ((20, "other"), (21, "other"), (22, "third")):
            data = noise(8 * 10**6, seed)
            self.assertEqual(self.upload(tenant, parts(data, n=MIB)).result().size_bytes, len(data))
        for call in calls:
            call.cancel()
        gone.set()


class Stalls(Images):
    """Clients that stand still hold memory that others need."""
    options = ("--stall-ms", "1500ms")

    def test_an_upload_that_stands_still(self):
        data, gone = noise(8 * 10**6), threading.Event()
        for before in ([], [header(data)], parts(data, n=MIB)[:3]):
            def hanging(before=before):
                yield from before
                gone.wait(lib.CALL_S)
            found = self.refused(hanging(), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", None)
            self.assertEqual(found.metadata["limit"], "1500")
        gone.set()
        self.nothing_of(data)
        self.assertTrue(self.has_room(data))

    def test_an_upload_that_is_slow_but_moves(self):
        data, tick = noise(400), threading.Event()

        def slow():
            yield header(data)
            for i in range(0, 400, 50):
                tick.wait(0.3)
                yield chunk(data[i:i + 50])
        self.assertEqual(self.upload(slow()).size_bytes, 400)

    def test_masks_that_nobody_reads(self):
        self.cluster.worker("empty")
        made = lib.create(self.stub, image=lib.png(2000, 2000), phrases=[f"noise {i}" for i in range(8)])
        job = lib.wait(self.stub, made.name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)
        fetch = pb.FetchMasksRequest(name=job.name, format=pb.MaskFormat(encoding=pb.MASK_ENCODING_FLOAT16))
        idle = self.stub.FetchMasks(fetch)  # no deadline, and 64 MB of which not one byte is read
        lib.until("the server hanging up", lambda: "stands still" in self.scheduler.log(), 10)
        with self.assertRaises(lib.grpc.RpcError):
            list(idle)
        self.assertEqual(sum(len(m.mask.data) for m in self.stub.FetchMasks(fetch, timeout=lib.START_S)), 8 * 8000000)


class Store(Images):
    options = ("--max-bytes", "30M", "--redis-timeout-ms", 2000 * min(lib.SLOWER, 30))

    def test_the_store_is_bounded(self):
        """--max-bytes 30M: the upload that does not fit is told to come again later."""
        digests, found = [], None
        for seed in range(200, 206):
            data = noise(7 * MIB, seed)
            try:
                self.upload(parts(data, n=MIB))
                digests.append(sha(data))
            except lib.grpc.RpcError as e:
                found = lib.Failure(e)
                break
        self.assertIsNotNone(found)
        self.assertFails(found, "RESOURCE_EXHAUSTED", "QUEUE_FULL")
        self.assertGreaterEqual(found.retry_s, 1)
        self.assertTrue(all(i.existed for i in self.held(*digests)), "what was stored stays")


if __name__ == "__main__":
    lib.main()
