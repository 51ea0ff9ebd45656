#!/usr/bin/env python3
"""batch() of the Python package, both clients, against a server that breaks on demand.

    python3 python_batch_test.py BIN DESCRIPTORS      (in the source's root)"""
import asyncio
import collections
import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import lib_pseg as lib
from batch_fake import Fake

HOME = pathlib.Path(tempfile.mkdtemp(prefix="pseg-python-"))
shutil.copytree("client/python/src/pseg", HOME / "pseg")
shutil.copy(lib.DESCRIPTORS, HOME / "pseg" / "descriptors.binpb")
sys.path.insert(0, str(HOME))
import pseg  # noqa: E402

unittest.addModuleCleanup(shutil.rmtree, HOME, ignore_errors=True)
IS_ASYNC = (False, True)
# A program of its own, to be killed: writes a line for each outcome.
PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
import pseg
items = ((b"good", f"item {i}", str(i)) for i in range(int(sys.argv[4])))
with pseg.Client(sys.argv[2]) as client:
    for o in client.batch(items, state=sys.argv[3], window=50):
        print(o.index, flush=True)
"""


class Batch(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pseg-batch-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def fake(self, **kw):
        f = Fake(**kw)
        self.addCleanup(f.stop)
        self.addCleanup(lambda: self.assertEqual(f.errors, []))
        return f

    def batch(self, is_async, fake, items, until=None, **kw):
        """The outcomes, or the first `until` of them and then away."""
        found = []
        if not is_async:
            with pseg.Client(fake.target, retry_s=lib.CALL_S) as client:
                with contextlib.closing(client.batch(items, **kw)) as outcomes:
                    for o in outcomes:
                        found.append(o)
                        if len(found) == until:
                            break
            return found

        async def run():
            async with pseg.AsyncClient(fake.target, retry_s=lib.CALL_S) as client:
                outcomes = client.batch(items, **kw)
                try:
                    async for o in outcomes:
                        found.append(o)
                        if len(found) == until:
                            break
                finally:
                    await outcomes.aclose()
            return found

        return asyncio.run(asyncio.wait_for(run(), 2 * lib.START_S))

    def assert_once(self, found, n):
        self.assertEqual(sorted(o.index for o in found), list(range(n)))

    def test_outcomes(self):
        path = self.folder / "good.jpg"
        path.write_bytes(b"good")
        large = b"x" * ((3 << 20) + 1)
        items = [(path, ["a dog", "the sky"]), (b"bad", "a dog"), (self.folder / "gone.jpg", "a dog", "!mine"),
                 (b"good", "a dog", "my id"), (7, "a dog"), (large, "a dog"), (large, "a cat"), ("only one",)]
        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                fake = self.fake()
                found = sorted(self.batch(is_async, fake, iter(items), encoding=pseg.Encoding.RLE, priority=3, model="m"),
                               key=lambda o: o.index)
                self.assert_once(found, 8)
                self.assertEqual([o.item for o in found], items)
                self.assertEqual([o.error.reason if o.error else None for o in found],
                                 [None, "IMAGE_UNDECODABLE", "ITEM_INVALID", None, "ITEM_INVALID", None, None, "ITEM_INVALID"])
                self.assertIn("gone.jpg", found[2].error.message)
                self.assertEqual([m.rle["counts"] for m in found[0].value.masks], [b"5", b"7"])
                self.assertEqual(found[0].value.masks[1].prompt, "the sky")
                self.assertEqual((found[0].id, found[3].id, found[1].id), (str(path), "my id", ""))
                self.assertEqual(found[3].value.job.model, "")
                (b,) = fake.batches.values()
                self.assertEqual(b.ended[3][2], ("m", 0.0))
                self.assertEqual((fake.counts["uploaded"], fake.counts["sha256"]), (1, 2))
                self.assertTrue(b.is_sealed and not b.is_cancelled)

    def test_streams_that_break(self):
        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                fake = self.fake(break_submit=17, break_results=11)
                found = self.batch(is_async, fake, ((b"good", f"item {i}") for i in range(100)), window=40)
                self.assert_once(found, 100)
                for o in found:
                    self.assertEqual(o.value.job.prompts, [f"item {o.index}"])
                    self.assertEqual(o.item[1], f"item {o.index}")
                self.assertGreater(fake.counts["submits"], 5)

    def test_what_is_told_again(self):
        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                fake, state, found = self.fake(break_results=11, rewind=10), self.folder / f"state{is_async}", []
                for until in (30, 40, None):
                    found += self.batch(is_async, fake, ((b"good", f"item {i}") for i in range(100)), until, state=state,
                                        window=40)
                    if until:
                        found.pop()  # the one that was in hand when it was left counts as not dealt with
                self.assert_once(found, 100)
                self.assertGreater(fake.told, 120, "the server told many again")

    def test_masks_that_are_fetched_by_themselves(self):
        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                found = self.batch(is_async, self.fake(omit_masks=True), [(b"good", ["a", "bc"])] * 3)
                self.assertEqual([[m.data for m in o.value.masks] for o in found], [[b"1", b"2"]] * 3)

    def test_goes_on_where_it_was_left(self):
        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                fake, state, counts = self.fake(), self.folder / f"state{is_async}", collections.Counter()

                def items():
                    return ((b"good", f"item {i}", str(i)) for i in range(200))

                for until in (1, 20, 30, None):
                    for o in self.batch(is_async, fake, items(), until, state=state, window=40):
                        counts[o.index] += 1
                        self.assertEqual(o.id, str(o.index))
                        self.assertTrue(o.item is None or o.item[2] == o.id)
                self.assertEqual(sorted(counts), list(range(200)))
                # The one that was in hand when it was left counts as not dealt with.
                self.assertEqual(sum(counts.values()), 200 + 3)
                self.assertEqual(self.batch(is_async, fake, items(), state=state, window=40), [])
                (b,) = fake.batches.values()
                self.assertEqual([e[0] for e in b.ended], list(range(1, 201)))
                with self.assertRaisesRegex(ValueError, "other options"):
                    self.batch(is_async, fake, items(), state=state, model="other")

    def test_killed(self):
        fake, told, state, kills = self.fake(window=100), [], self.folder / "state", 0
        while True:
            p = subprocess.Popen([sys.executable, "-B", "-c", PROGRAM, HOME, fake.target, state, "300"],
                                 stdout=subprocess.PIPE, text=True)
            with p:
                for line in p.stdout:
                    told.append(int(line))
                    if kills < 3 and len(told) > 60 * (kills + 1):
                        p.kill()
                        kills += 1
            if p.returncode == 0:
                break
        self.assertEqual(kills, 3)
        self.assertEqual(sorted(set(told)), list(range(300)))
        (b,) = fake.batches.values()
        self.assertEqual([e[0] for e in b.ended], list(range(1, 301)))

    def test_reads_no_further_than_it_must(self):
        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                fake, taken = self.fake(window=1000), []

                def endless():
                    while True:
                        taken.append(len(taken))
                        yield b"good", "a star"

                self.batch(is_async, fake, endless(), until=5, window=30)
                self.assertLessEqual(len(taken), 5 + 30 + 1)
                # Nobody could go on with it.
                self.assertTrue(all(b.is_cancelled for b in fake.batches.values()))

    def test_failures_reach_the_caller(self):
        def faulty():
            yield b"good", "a"
            raise KeyError("of the caller")

        for is_async in IS_ASYNC:
            with self.subTest(is_async=is_async):
                with self.assertRaisesRegex(KeyError, "of the caller"):
                    self.batch(is_async, self.fake(), faulty())
                with self.assertRaisesRegex(ValueError, "window"):
                    self.batch(is_async, self.fake(), [], window=0)
                fake, state = self.fake(), self.folder / f"short{is_async}"
                items = [(b"good", "a")] * 30
                fake.last_grant = 10
                self.batch(is_async, fake, items, until=10, state=state)
                fake.last_grant = 1 << 62
                with self.assertRaisesRegex(ValueError, "the items end after 4"):
                    self.batch(is_async, fake, items[:4], state=state)
                fake.batches.clear()
                with self.assertRaises(pseg.NotFound) as caught:
                    self.batch(is_async, fake, items, state=state)
                self.assertEqual(caught.exception.reason, "BATCH_NOT_FOUND")

    def test_no_items(self):
        for is_async in IS_ASYNC:
            self.assertEqual(self.batch(is_async, self.fake(), []), [])


if __name__ == "__main__":
    lib.main()
