#!/usr/bin/env python3
"""`pseg batch` against a server that breaks on demand: every line is told exactly once, whatever is cut off.

    python3 batch_test.py BIN DESCRIPTORS      (in the source's root)"""
import collections
import contextlib
import json
import os
import pathlib
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import grpc

import lib_pseg as lib
from batch_fake import Fake

PSEG = str(lib.BIN / "pseg")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}
# What ASan keeps of freed memory is no growth of the program's.
ENV["ASAN_OPTIONS"] = ENV.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8"
END_S = 180 * lib.SLOWER  # for a command to end, on a slow machine


class Batch(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pseg-batch-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.out = self.folder / "out"
        (self.folder / "good.jpg").write_bytes(b"good")
        (self.folder / "bad.jpg").write_bytes(b"bad")

    def fake(self, **kw):
        f = Fake(**kw)
        self.addCleanup(f.stop)
        self.addCleanup(lambda: self.assertEqual(f.errors, []))
        return f

    def manifest(self, lines):
        path = self.folder / "list.jsonl"
        with open(path, "w", encoding="utf-8") as f:
            for line in lines:
                f.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
        return path

    def good(self, n, **kw):
        return self.manifest({"image": "good.jpg", "prompts": [f"line {i}"], **kw} for i in range(1, n + 1))

    def command(self, fake, manifest, *more):
        return [PSEG, "batch", *map(str, manifest if isinstance(manifest, list) else [manifest]), "--out", str(self.out),
                "--server", fake if isinstance(fake, str) else fake.target, *more]

    def start(self, *args):
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *self.command(*args)], env=ENV, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run_batch(self, fake, manifest, *more, status=0):
        """The summary."""
        p = self.start(fake, manifest, "--json", *more)
        out, err = p.communicate(timeout=END_S)
        self.assertEqual(p.returncode, status, (out, err))
        return json.loads(out)

    def lines_of(self, name):
        path = self.out / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def assert_once(self, n, failed=()):
        """Lines 1..n stand in results.jsonl, but those that stand in failures.jsonl; each once."""
        results, failures = self.lines_of("results.jsonl"), self.lines_of("failures.jsonl")
        self.assertEqual(sorted(r["line"] for r in failures), sorted(failed))
        self.assertEqual(sorted(r["line"] for r in results), sorted(set(range(1, n + 1)) - set(failed)))
        for r in results:
            for one in r["results"]:
                self.assertEqual(one["segmentation"], {"size": [3, 4], "counts": str(len(one["prompt"]))})
        return results, failures

    # ---- the straight way ----

    def test_lines_in_results_out(self):
        fake = self.fake()
        found = self.run_batch(fake, self.manifest([
            {"image": "good.jpg", "prompts": ["a dog", "the sky above"], "id": "first", "image_id": 77},
            {"image": "good.jpg", "model": "other", "threshold": 0.25}]), "--prompt", "a cat", "--model", "m")
        self.assertEqual((found["items"], found["succeeded"], found["failed"], found["finished"]), (2, 2, 0, True))
        self.assertEqual(found["results"], str(self.out / "results.jsonl"))
        results, _ = self.assert_once(2)
        first = next(r for r in results if r["line"] == 1)
        self.assertEqual((first["id"], first["image_id"], first["image"]), ("first", 77, "good.jpg"))
        self.assertEqual((first["width"], first["height"]), (4, 3))
        self.assertEqual([(r["prompt"], r["area"], r["score"]) for r in first["results"]],
                         [("a dog", 5, 0.5), ("the sky above", 13, 0.5)])
        (batch,) = fake.batches.values()
        self.assertEqual([(e[1], e[2], e[3]) for e in batch.ended],
                         [("first", ("m", 0.5), ("a dog", "the sky above")), ("good.jpg", ("other", 0.25), ("a cat",))])
        self.assertTrue(first["job"].startswith("jobs/"))
        # Done is done: the same again asks nobody.
        fake.stop()
        again = self.run_batch(fake, self.folder / "list.jsonl", "--prompt", "a cat", "--model", "m")
        self.assertEqual({**again, "seconds": 0}, {**found, "seconds": 0})
        self.assertEqual(sorted(p.name for p in (self.out / ".pseg-batch").iterdir()), ["lock", "state.json"])

    def test_words_for_people(self):
        fake = self.fake()
        p = self.start(fake, self.manifest([{"image": "good.jpg", "prompt": "a"}, "{", {"image": "no.jpg", "prompt": "a"}]))
        out, err = p.communicate(timeout=END_S)
        self.assertEqual(p.returncode, 5)
        self.assertIn("3 items: 1 succeeded, 2 failed\n", out)
        self.assertRegex(out, r"DATA_CORRUPT +1\n.*FILE_NOT_FOUND +1\n|FILE_NOT_FOUND +1\n.*DATA_CORRUPT +1\n")
        self.assertRegex(err, r"^error: 2 of 3 items failed; [^\n]*failures.jsonl tells of each \(JOB_FAILED\)\n$")

    def test_a_thousandth_of_bad_lines(self):
        n = 5000
        kinds = {1: ("{", "DATA_CORRUPT", "line {} is no JSON"),
                 2: ({"image": "gone.jpg", "prompt": "a"}, "FILE_NOT_FOUND", "gone.jpg"),
                 3: ({"image": "bad.jpg", "prompt": "a"}, "IMAGE_UNDECODABLE", "no good"),
                 4: ({"prompt": "a"}, "IMAGE_MISSING", "line {} names no image"),
                 5: ({"image": "good.jpg"}, "PROMPT_MISSING", "--prompt"),
                 6: ({"image": ".", "prompt": "a"}, "FILE_IO", "")}
        bad = {line: kinds[1 + line % 6] for line in range(7, n, 500)}
        found = self.run_batch(self.fake(), self.manifest(
            bad[i][0] if i in bad else {"image": "good.jpg", "prompt": "a"} for i in range(1, n + 1)), status=5)
        self.assertEqual((found["succeeded"], found["failed"]), (n - len(bad), len(bad)))
        _, failures = self.assert_once(n, bad)
        for f in failures:
            _, reason, words = bad[f["line"]]
            self.assertEqual((f["reason"], f["state"]), (reason, "FAILED"), f)
            self.assertIn(words.format(f["line"]), f["message"])
        self.assertEqual(found["reasons"], dict(collections.Counter(b[1] for b in bad.values())))

    def test_other_forms(self):
        fake = self.fake()
        for i in range(3):
            (self.folder / f"{i}.png").write_bytes(b"%d" % i)
        self.run_batch(fake, [str(self.folder / "*.png")], "--prompt", "a", "--format", "png")
        results, _ = self.lines_of("results.jsonl"), None
        self.assertEqual(len({r["image"] for r in results}), 3)
        for r in results:
            self.assertEqual((self.out / r["results"][0]["mask"]).read_bytes(), b"1")
        coco = self.folder / "coco.json"
        coco.write_text(json.dumps({"images": [{"id": 40 + i, "file_name": f"{i}.png"} for i in range(3)] +
                                              [{"id": 99, "file_name": "gone.png"}],
                                    "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}]}))
        self.out = self.folder / "out2"
        self.run_batch(fake, coco, "--format", "coco", status=5)
        found = json.loads((self.out / "results.json").read_text())
        self.assertEqual(sorted((f["image_id"], f["category_id"], f["segmentation"]["counts"]) for f in found),
                         sorted((40 + i, c, n) for i in range(3) for c, n in ((7, "3"), (9, "4"))))
        self.assertEqual([(f["image_id"], f["reason"]) for f in self.lines_of("failures.jsonl")], [(99, "FILE_NOT_FOUND")])
        self.assertFalse((self.out / "results.json.part").exists())

    def test_large_images_and_those_that_are_held(self):
        (self.folder / "large.jpg").write_bytes(b"x" * ((3 << 20) + 1))
        fake = self.fake()
        lines = [{"image": name, "prompt": "a"} for name in ("large.jpg", "good.jpg", "large.jpg")]
        self.run_batch(fake, self.manifest(lines))
        self.assert_once(3)
        self.assertEqual(fake.counts["sha256"], 2)
        self.assertGreaterEqual(fake.counts["uploads"], 2)
        self.assertEqual(fake.counts["content"], 1)
        for more in ([], ["--skip-held"]):
            self.out, before = self.folder / f"out{more}", dict(fake.counts)
            self.run_batch(fake, self.folder / "list.jsonl", *more)
            self.assert_once(3)
            self.assertEqual(fake.counts["content"], before["content"])
            self.assertEqual(fake.counts["uploads"], before["uploads"])
            self.assertEqual(fake.counts["checks"], before["checks"] + 3)

    def test_asks_what_is_held_where_that_pays(self):
        n, fake = 1500, self.fake(window=500)
        lines = [{"image": f"{i}.jpg", "prompt": "a"} for i in range(n)]
        for i in range(n):
            (self.folder / f"{i}.jpg").write_bytes(b"%d" % i)
        self.run_batch(fake, self.manifest(lines))
        # A stretch for each of the threads that read, at the beginning and once more.
        self.assertLessEqual(fake.counts["checks"], 16 * 4 * 2)
        self.assertEqual(fake.counts["content"], n)
        self.out, checks = self.folder / "out2", fake.counts["checks"]
        self.run_batch(fake, self.folder / "list.jsonl")
        self.assert_once(n)
        self.assertEqual((fake.counts["checks"] - checks, fake.counts["content"]), (n, n))
        self.out, checks = self.folder / "out3", fake.counts["checks"]
        fake.images.clear()
        self.run_batch(fake, self.folder / "list.jsonl", "--skip-held")
        self.assertEqual((fake.counts["checks"] - checks, fake.counts["content"]), (n, 2 * n))

    def test_masks_that_are_fetched_by_themselves(self):
        self.run_batch(self.fake(omit_masks=True), self.good(5))
        self.assert_once(5)

    def test_progress(self):
        fake = self.fake()
        fake.last_grant = 10
        manifest, seen = self.good(40), b""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        p = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *self.command(fake, manifest)], env=ENV,
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        with contextlib.suppress(OSError):  # the terminal goes with the command
            while part := os.read(master, 4096):
                seen += part
                if b"10 of 40 (25.0 %)" in seen and fake.last_grant == 10:
                    fake.last_grant = 1 << 62
                    # Its stream is told no more: it comes again by another one.
                    fake.wake()
        self.assertEqual(p.wait(END_S), 0)
        self.assertIn(b"\r\x1b[K10 of 40 (25.0 %)", seen)
        self.assertTrue(seen.endswith(b"\r\x1b[K"), seen[-80:])
        # Not a terminal: nothing, but where it is asked for.
        self.out = self.folder / "out2"
        p = self.start(fake, manifest)
        self.assertEqual((p.communicate(timeout=END_S)[1], p.returncode), ("", 0))

    # ---- broken off ----

    def test_streams_that_break(self):
        fake = self.fake(break_submit=37, break_results=23)
        self.run_batch(fake, self.good(400))
        self.assert_once(400)
        self.assertGreater(fake.counts["submits"], 5)
        self.assertGreater(fake.counts["streams"], 5)

    def test_what_is_told_again(self):
        fake = self.fake(break_results=23, rewind=20)
        bad = set(range(5, 400, 9))
        found = self.run_batch(fake, self.manifest({"image": "gone.jpg" if i in bad else "good.jpg", "prompts": [f"line {i}"]}
                                                   for i in range(1, 401)), status=5)
        self.assert_once(400, bad)
        self.assertEqual((found["succeeded"], found["failed"]), (400 - len(bad), len(bad)))
        self.assertGreater(fake.told, 450, "the server told many again")

    def test_what_is_told_again_to_one_that_was_killed(self):
        fake, kills = self.fake(rewind=10), 0
        manifest = self.good(300)
        while True:
            p, began = self.start(fake, manifest), fake.told
            while p.poll() is None and (kills == 3 or fake.told < began + 60):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    p.wait(0.01)
            if p.poll() is None:
                p.kill()
                p.communicate()
                kills += 1
                continue
            self.assertEqual(p.returncode, 0, p.communicate())
            break
        self.assertEqual(kills, 3)
        self.assert_once(300)

    def test_killed_again_and_again(self):
        rng = random.Random(5)
        fake = self.fake(window=100)
        for form, n in (("jsonl", 1500), ("coco", 500)):
            manifest = self.manifest({"image": "gone.jpg" if i % 100 == 7 else "good.jpg", "prompt": "a"}
                                     for i in range(1, n + 1))
            self.out, attempt, bad = self.folder / form, 0, list(range(7, n + 1, 100))
            while True:
                p = self.start(fake, manifest, "--format", form)
                # Further each time, so that it ends at last on a machine of any speed.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    p.communicate(timeout=rng.uniform(0.05, 0.2) * (1 + attempt))
                    break
                p.kill()
                p.communicate()
                attempt += 1
            self.assertEqual(p.returncode, 5)
            self.assertGreater(attempt, 0, "it was never killed")
            if form == "jsonl":
                self.assert_once(n, bad)
            else:
                found = json.loads((self.out / "results.json").read_text())
                self.assertEqual(sorted(f["image_id"] for f in found), sorted(set(range(1, n + 1)) - set(bad)))
                self.assertEqual(sorted(f["line"] for f in self.lines_of("failures.jsonl")), bad)
        for b in fake.batches.values():
            self.assertEqual([e[0] for e in b.ended], list(range(1, b.next)))

    def test_stopped_by_a_signal(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.out = self.folder / f"out{number}"
            fake = self.fake(window=10)
            fake.last_grant = 10
            p = self.start(fake, self.good(100))
            lib.until("ten items", lambda: any(b.next == 11 for b in fake.batches.values()))
            p.send_signal(number)
            out, err = p.communicate(timeout=END_S)
            self.assertEqual(p.returncode, -number, err)
            self.assertIn("the same command goes on from here", err)
            fake.last_grant = 1 << 62
            self.run_batch(fake, self.folder / "list.jsonl")
            self.assert_once(100)
            self.assertEqual(len(fake.batches), 1)

    def test_a_server_that_comes_late(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            target = f"127.0.0.1:{s.getsockname()[1]}"
        p = self.start(target, self.good(10))
        lib.until("the plan", lambda: (self.out / ".pseg-batch" / "state.json").exists())
        self.fake(listen=target)
        out, err = p.communicate(timeout=END_S)
        self.assertEqual(p.returncode, 0, err)
        self.assert_once(10)

    # ---- what is refused ----

    def refused(self, status, reason, words, *args):
        p = self.start(*args)
        out, err = p.communicate(timeout=END_S)
        self.assertEqual((p.returncode, out), (status, ""), err)
        self.assertRegex(err, rf"^error: [^\n]+ \({reason}\)\n$")
        self.assertIn(words, err)

    def test_what_cannot_go_on(self):
        fake = self.fake()
        m = self.good(3)
        fake.refuse = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "no key")
        self.refused(1, "UNAUTHENTICATED", "no key", fake, m)
        fake.refuse = None
        self.refused(4, "SERVER_UNAVAILABLE", "the same command goes on", "127.0.0.1:1", m, "--patience-ms", "300")
        self.refused(2, "CONFIG_INVALID", "another --format: \"jsonl\", now \"coco\"", fake, m, "--format", "coco")
        self.refused(2, "CONFIG_INVALID", "--format \"x\" is not", fake, m, "--format", "x")
        self.refused(2, "CONFIG_INVALID", "--input \"x\" is not", fake, m, "--input", "x")
        self.refused(2, "CONFIG_INVALID", "name a manifest", fake, [])
        fake.hold_results.clear()
        p = self.start(fake, m)
        lib.until("a batch that is under way", lambda: any(b.is_sealed for b in fake.batches.values()))
        self.refused(2, "CONFIG_INVALID", "is at work in", fake, m)
        p.kill()
        p.communicate()
        fake.batches.clear()
        fake.hold_results.set()
        self.refused(3, "BATCH_NOT_FOUND", "has lost", fake, m)
        m.write_text("{}")
        self.refused(2, "CONFIG_INVALID", "another manifest's size", fake, m)

    def test_cancelled(self):
        fake = self.fake(window=5)
        m = self.good(50)
        self.refused(2, "CONFIG_INVALID", "holds no batch", fake, [], "--cancel")
        fake.last_grant = 7
        p = self.start(fake, m)
        lib.until("seven items", lambda: any(b.next == 8 for b in fake.batches.values()))
        p.kill()
        p.communicate()
        (b,) = fake.batches.values()
        p = self.start(fake, [], "--cancel")
        out, err = p.communicate(timeout=END_S)
        self.assertEqual(p.returncode, 0, err)
        self.assertIn(f"{b.name} is cancelled", out)
        self.refused(5, "JOB_CANCELLED", "43 of 50 items were never sent", fake, m)
        self.assertEqual(len(self.lines_of("results.jsonl")), 7)

    # ---- bounds ----

    def test_memory_does_not_grow_with_the_manifest(self):
        peaks = []
        for n in (1000, 12000):
            self.out = self.folder / f"out{n}"
            p = self.start(self.fake(window=2000), self.good(n))
            _, status, usage = os.wait4(p.pid, 0)
            p.returncode = os.waitstatus_to_exitcode(status)
            p.communicate()
            self.assertEqual(p.returncode, 0)
            peaks.append(usage.ru_maxrss)
        self.assertLess(peaks[1] - peaks[0], 16 << 10, f"KiB at the peak: {peaks}")


if __name__ == "__main__":
    lib.main()
