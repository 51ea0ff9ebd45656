#!/usr/bin/env python3
"""The Python package of client/python against real processes, and its installation by pip."""
import asyncio
import datetime
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock

import numpy as np

import lib_pseg as lib

# As an installed package has it: the sources with the descriptors beside them.
HOME = pathlib.Path(tempfile.mkdtemp(prefix="pseg-python-"))
shutil.copytree("client/python/src/pseg", HOME / "pseg")
shutil.copy(lib.DESCRIPTORS, HOME / "pseg" / "descriptors.binpb")
sys.path.insert(0, str(HOME))
import pseg  # noqa: E402

unittest.addModuleCleanup(shutil.rmtree, HOME, ignore_errors=True)
SCENE = pathlib.Path("docs/example/scene.png")
PHRASES = ["the small red circle", "a star"]


class Package(lib.Test):
    @classmethod
    def setup(cls, cluster):
        super().setup(cluster)
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.worker = cluster.worker("scenes")
        cls.client = pseg.Client(cls.scheduler.target)
        cls.addClassCleanup(cls.client.close)

    def test_segment(self):
        found = self.client.segment(SCENE, PHRASES)
        self.assertEqual(found.job.state, pseg.State.SUCCEEDED)
        self.assertEqual([m.prompt for m in found.masks], PHRASES)
        for mask, result in zip(found.masks, found.job.results):
            self.assertEqual(mask.array.shape, (224, 224))
            self.assertEqual(mask.array.dtype, np.bool_)
            self.assertEqual(int(mask.array.sum()), result.area_px)
            self.assertIs(mask.result, result)
            self.assertTrue(0 <= result.predicted_iou <= 1)
            rows, columns = np.nonzero(mask.array)
            self.assertEqual(result.box, pseg.Box(columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1))
        self.assertGreater(found.job.stages["decode_mask"], 0)
        self.assertEqual(found.job.receipt["model"], "scenes")
        self.assertIsNotNone(found.job.finish_time.tzinfo)

    def test_an_image_of_every_kind_gives_the_same_mask(self):
        wanted = self.client.segment(SCENE, "a star").masks[0].array
        from PIL import Image
        picture = Image.open(SCENE).convert("RGB")
        kinds = {"str": str(SCENE), "bytes": SCENE.read_bytes(), "file": SCENE.open("rb"), "pillow": picture,
                 "array": np.asarray(picture), "memoryview": memoryview(SCENE.read_bytes())}
        for name, image in kinds.items():
            with self.subTest(name):
                np.testing.assert_array_equal(self.client.segment(image, "a star").masks[0].array, wanted)
        kinds["file"].close()
        for bad, error in ((np.zeros((4, 4, 4), np.uint8), ValueError), (np.zeros((4, 4)), ValueError),
                           (7, TypeError), (io.StringIO("x"), TypeError)):
            with self.assertRaises(error):
                self.client.segment(bad, "a star")

    def test_encodings_agree(self):
        job = self.client.segment(SCENE, PHRASES).job
        bits = self.client.masks(job.name)
        for encoding in (pseg.Encoding.RLE, pseg.Encoding.PNG, pseg.Encoding.FLOAT16):
            # A probability within half a unit of float16 from the threshold may round across it.
            allowed = 5 if encoding is pseg.Encoding.FLOAT16 else 0
            with self.subTest(encoding.name):
                for mask, want in zip(self.client.masks(job, encoding=encoding), bits):
                    self.assertLessEqual(np.count_nonzero(mask.array != want.array), allowed)
        rings = self.client.masks(job, encoding=pseg.Encoding.POLYGON, prompt_indexes=[1])
        self.assertEqual([m.prompt for m in rings], [PHRASES[1]])
        x, y = np.array(rings[0].polygons[0][::2]), np.array(rings[0].polygons[0][1::2])
        self.assertGreater(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2, 10)
        lower = self.client.masks(job, threshold=0.1)[0].array
        self.assertGreaterEqual(lower.sum(), bits[0].array.sum())
        self.assertEqual(rings[0].encoding, pseg.Encoding.POLYGON)
        for wrong in ("array", "probabilities", "rle"):
            with self.assertRaises(ValueError):
                getattr(rings[0], wrong)

    def test_large_images_are_uploaded_once(self):
        image = lib.png(4000, 3700, seed=5)
        self.assertGreater(len(image), 3 << 20)
        found = self.client.segment(image, "a star", encoding=pseg.Encoding.RLE)
        self.assertEqual((found.masks[0].width, found.masks[0].height), (4000, 3700))
        self.assertEqual(found.masks[0].array.shape, (3700, 4000))
        self.assertEqual(self.client.upload(image), found.job.image_sha256)

    def test_jobs(self):
        deadline = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        kw = dict(request_id="once", labels={"k": "v"}, deadline=deadline, ttl=datetime.timedelta(minutes=5),
                  threshold=0.25)
        job = self.client.submit(SCENE, PHRASES, **kw)
        self.assertEqual(self.client.submit(SCENE, PHRASES, **kw).name, job.name)
        done = self.client.wait(job)
        self.assertEqual((done.state, done.labels, done.mask_threshold), (pseg.State.SUCCEEDED, {"k": "v"}, 0.25))
        self.assertEqual(self.client.get(job.name).results, done.results)
        self.assertLess(abs((done.deadline - deadline).total_seconds()), 0.01)
        self.assertEqual(self.client.cancel(job).state, pseg.State.SUCCEEDED)
        self.assertIn(job.name, [j.name for j in self.client.jobs([pseg.State.SUCCEEDED])])
        self.assertEqual([m.name for m in self.client.models()], ["scenes"])
        with self.assertRaisesRegex(ValueError, "time zone"):
            self.client.submit(SCENE, "a star", deadline=datetime.datetime.now())

    def test_errors(self):
        with self.assertRaises(pseg.InvalidArgument) as caught:
            self.client.segment(SCENE, "x" * 5000)
        e = caught.exception
        self.assertEqual((e.code, e.reason, e.fields), ("INVALID_ARGUMENT", "PROMPT_TOO_LONG", ["job.prompts[0].text"]))
        self.assertEqual(e.metadata, {"value": "5000", "limit": "1024"})
        with self.assertRaises(pseg.NotFound) as caught:
            self.client.get("jobs/" + "0" * 32)
        self.assertEqual(caught.exception.resource, ("pseg.v1.Job", "jobs/" + "0" * 32))
        with self.assertRaises(pseg.JobFailed) as caught:
            self.client.segment(SCENE.read_bytes()[:300], "a star")
        self.assertEqual((caught.exception.reason, caught.exception.job.state),
                         ("IMAGE_UNDECODABLE", pseg.State.FAILED))
        self.client.submit(SCENE, "a star", request_id="twice")
        with self.assertRaises(pseg.AlreadyExists):
            self.client.submit(SCENE, "another", request_id="twice")

    def test_map(self):
        def items():
            for n in range(12):
                yield (lib.png(64, 64, seed=n) if n % 4 != 3 else b"no image", "a star")
            yield ("/no/such/file.jpg", "a star")

        for ordered in (False, True):
            found = list(self.client.map(items(), concurrency=4, ordered=ordered))
            self.assertEqual(sorted(o.index for o in found), list(range(13)))
            if ordered:
                self.assertEqual([o.index for o in found], list(range(13)))
            wrong = {o.index: o.error.reason for o in found if o.error}
            self.assertEqual(wrong, {3: "IMAGE_FORMAT_UNSUPPORTED", 7: "IMAGE_FORMAT_UNSUPPORTED",
                                     11: "IMAGE_FORMAT_UNSUPPORTED", 12: "ITEM_INVALID"})
            self.assertTrue(all(o.value.masks[0].array.shape == (64, 64) for o in found if o.value))

    def test_map_reads_no_further_than_it_must(self):
        taken = []

        def endless():
            while True:
                taken.append(len(taken))
                yield (SCENE, "a star")

        results = self.client.map(endless(), concurrency=3)
        for _ in range(5):
            next(results)
        results.close()
        self.assertLessEqual(len(taken), 5 + 2 * 3)

    def test_asyncio(self):
        async def run():
            async with pseg.AsyncClient(self.scheduler.target) as client:
                found = await client.segment(SCENE, PHRASES)
                many = [o async for o in client.map(((SCENE, p) for p in PHRASES * 4), concurrency=4)]
                job = await client.submit(SCENE, "a star")
                await client.wait(job)
                masks = await client.masks(job, encoding=pseg.Encoding.RLE)
                names = [j.name async for j in client.jobs()]
                upload = await client.upload(lib.png(4000, 3700, seed=6))
                with self.assertRaises(pseg.NotFound):
                    await client.get("jobs/" + "0" * 32)
                return found, many, masks, job.name in names, upload, await client.models()

        found, many, masks, is_listed, upload, models = asyncio.run(run())
        wanted = self.client.segment(SCENE, PHRASES)
        np.testing.assert_array_equal(found.masks[0].array, wanted.masks[0].array)
        np.testing.assert_array_equal(masks[0].array, wanted.masks[1].array)
        self.assertEqual((len(many), [o.error for o in many if o.error]), (8, []))
        self.assertTrue(is_listed)
        self.assertEqual((len(upload), models[0].name), (64, "scenes"))

    def test_tries_again_while_the_server_is_away(self):
        """The scheduler is killed and started again on its address while a call waits."""
        address = f"unix:{self.cluster.folder}/again.sock"
        first = self.cluster.scheduler("--default-model", "scenes", listen=address)
        with pseg.Client(address, retry_s=60) as client:
            client.models()
            first.kill()
            done = []
            thread = threading.Thread(target=lambda: done.append(client.segment(SCENE, "a star", timeout=60)))
            thread.start()
            self.cluster.scheduler("--default-model", "scenes", listen=address)
            thread.join(60)
            self.assertEqual(done and done[0].job.state, pseg.State.SUCCEEDED)
        with pseg.Client("unix:/no/such/socket", retry_s=0.2) as client:
            with self.assertRaises(pseg.Unavailable) as caught:
                client.models(timeout=5)
            self.assertEqual(caught.exception.reason, "SERVER_UNAVAILABLE")

    def watch(self, target, is_async, then, jobs=(), **kw):
        """The events of a watch that has begun, until it ends; then(n) is called before the nth is waited for, and
        closes the watch if it gives True."""
        found = []
        if not is_async:
            with pseg.Client(target, retry_s=60) as client, client.watch(jobs, **kw) as events:
                while True:
                    if then(len(found)):
                        events.close()
                    event = next(events, None)
                    if event is None:
                        return found
                    found.append(event)

        async def run():
            async with pseg.AsyncClient(target, retry_s=60) as client, client.watch(jobs, **kw) as events:
                while True:
                    if then(len(found)):  # in this thread: a process that another starts dies with it
                        events.close()
                    async for event in events:
                        found.append(event)
                        break
                    else:
                        return found

        return asyncio.run(asyncio.wait_for(run(), 2 * lib.START_S))

    def test_watch(self):
        for is_async in (False, True):
            with self.subTest(is_async=is_async):
                jobs = []

                def submit(n):
                    if n == 0:
                        jobs.append(self.client.submit(SCENE, "a star"))
                    return n == 2

                found = self.watch(self.scheduler.target, is_async, submit)
                self.assertEqual([(e.name, e.state) for e in found],
                                 [(jobs[0].name, pseg.State.RUNNING), (jobs[0].name, pseg.State.SUCCEEDED)])
                self.assertTrue(found[0].worker and not found[1].worker and not found[0].batch)
                self.assertLessEqual(found[0].time, found[1].time)
                self.assertIsNotNone(found[0].time.tzinfo)
                again = self.watch(self.scheduler.target, is_async, lambda n: n == 1, resume=found[0].token)
                self.assertEqual(again, found[1:])
                # Those that are named have ended, and so does the watch.
                none = "jobs/" + "0" * 32
                named = self.watch(self.scheduler.target, is_async, lambda n: False, [jobs[0], none])
                self.assertEqual({e.name: e.state for e in named}, {jobs[0].name: pseg.State.SUCCEEDED, none: None})
                for bad, reason in ((dict(resume="nonsense"), "PAGE_TOKEN_INVALID"), (dict(jobs="x"), "NAME_INVALID")):
                    with self.assertRaises(pseg.InvalidArgument) as caught:
                        self.watch(self.scheduler.target, is_async, lambda n: False, **bad)
                    self.assertEqual(caught.exception.reason, reason)

    def test_watch_goes_on_at_another_scheduler(self):
        address = f"unix:{self.cluster.folder}/watch.sock"
        for is_async in (False, True):
            with self.subTest(is_async=is_async):
                first = self.cluster.scheduler("--default-model", "empty", listen=address)
                with pseg.Client(address, retry_s=60) as client:
                    jobs = [client.submit(SCENE, "a star") for _ in range(2)]  # nobody serves "empty"

                    def then(n):
                        nonlocal first
                        if n == 2:  # the present states have been told
                            first.kill()
                            first = self.cluster.scheduler("--default-model", "empty", listen=address)
                        if n in (2, 3):
                            client.cancel(jobs[n - 2])
                        return False

                    found = self.watch(address, is_async, then, jobs)
                    queued, cancelled = pseg.State.QUEUED, pseg.State.CANCELLED
                    self.assertEqual(sorted((e.name, e.state.name) for e in found[:2]),
                                     sorted((j.name, queued.name) for j in jobs))
                    self.assertEqual([(e.name, e.state) for e in found[2:]], [(j.name, cancelled) for j in jobs])

                    def restart(n):  # of all jobs it goes on after the last token
                        nonlocal first
                        if n == 1:
                            first.kill()
                            first = self.cluster.scheduler("--default-model", "empty", listen=address)
                        return n == 2
                    again = self.watch(address, is_async, restart, resume=found[1].token)
                    self.assertEqual([(e.name, e.state) for e in again], [(e.name, e.state) for e in found[2:]])
                first.kill()
        self.cluster.redis_cli("XTRIM", "pseg:{default}:events", "MAXLEN", "0")
        for is_async in (False, True):
            (gap,) = self.watch(self.scheduler.target, is_async, lambda n: n == 1, resume=found[2].token)
            self.assertEqual((gap.is_gap, gap.name, gap.state), (True, "", None))

    def test_time_runs_out(self):
        job = self.client.submit(SCENE, "a star", model="")
        self.client.wait(job)
        with pseg.Client(self.cluster.scheduler("--default-model", "empty").target) as client:
            job = client.submit(SCENE, "a star")  # nobody serves "empty"
            with self.assertRaises(pseg.DeadlineExceeded) as caught:
                client.wait(job, timeout=1)
            self.assertEqual(caught.exception.metadata["job"], job.name)
            self.assertEqual(client.cancel(job).state, pseg.State.CANCELLED)
            self.assertEqual(client.wait(job).state, pseg.State.CANCELLED)


    def test_tls_and_keys(self):
        if not shutil.which("openssl"):
            self.skipTest("no openssl")
        folder = self.cluster.folder
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout",
                        folder / "tls.key", "-out", folder / "tls.pem"], check=True, capture_output=True)
        (folder / "keys").write_text(f"{hashlib.sha256(b'secret').hexdigest()} team\n")
        scheduler = self.cluster.scheduler("--tls-cert", folder / "tls.pem", "--tls-key", folder / "tls.key", "--keys",
                                           folder / "keys", "--default-model", "scenes")
        target, ca = scheduler.target.replace("127.0.0.1", "localhost"), str(folder / "tls.pem")
        with pseg.Client(target, ca=ca, key="secret") as client:
            self.assertEqual(client.segment(SCENE, "a star").job.state, pseg.State.SUCCEEDED)
        with pseg.Client(target, ca=ca, key="wrong") as client:
            self.assertRaises(pseg.Unauthenticated, client.models)
        with unittest.mock.patch.dict(os.environ, PSEG_SERVER=target, PSEG_CA=ca, PSEG_KEY="secret"):
            with pseg.Client() as client:
                self.assertEqual(len(client.models()), 1)
        with self.assertRaisesRegex(ValueError, "belong together"):
            pseg.Client(target, cert=ca)


class RunLengths(unittest.TestCase):
    def test_hostile(self):
        for bad in (b"", b"0", b"\x50", b"5P", b"~" * 40):
            with self.assertRaises(ValueError):
                pseg.decode_rle(bad, 4, 4)


class Install(unittest.TestCase):
    def test_pip(self):
        """From the sources, with what Debian has, into a folder of its own."""
        pip = [sys.executable, "-m", "pip"]
        have = [sys.executable, "-c", "import pip, setuptools, wheel"]
        if subprocess.run(have, capture_output=True).returncode or not shutil.which("protoc"):
            self.skipTest("no pip, setuptools, wheel or protoc")
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder) / "source"  # building writes beside the sources
            for part in ("client/python", "proto"):
                shutil.copytree(part, source / part)
            shutil.copy("CMakeLists.txt", source)
            out = pathlib.Path(folder) / "out"
            done = subprocess.run([*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", "--target", out,
                                   source / "client/python"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            said = subprocess.run([sys.executable, "-c", "import pseg; print(sorted(pseg._wire.METHODS)[:1], "
                                   "pseg.__file__)"], env={**os.environ, "PYTHONPATH": str(out)},
                                  capture_output=True, text=True)
            self.assertIn("['BatchCheckImages']", said.stdout, said.stderr)
            self.assertIn(str(out), said.stdout)
            self.assertTrue((out / "pseg" / "py.typed").exists())


if __name__ == "__main__":
    lib.main()
