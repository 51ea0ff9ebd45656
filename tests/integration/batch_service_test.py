#!/usr/bin/env python3
"""`pseg batch` and batch() of the Python package with real processes: the same bytes as `pseg segment` and
`pseg run`, and one result a line when client, scheduler and worker are killed.

    python3 batch_service_test.py BIN DESCRIPTORS      (in the source's root)"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import lib_pseg as lib

PSEG = str(lib.BIN / "pseg")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}
SCENE = pathlib.Path("docs/example/scene.png").resolve()
PHRASES = ["the small red circle", "a star"]
END_S = 240 * lib.SLOWER


def pseg(*args, status=0):
    p = subprocess.run([PSEG, *map(str, args)], env=ENV, stdin=subprocess.DEVNULL, capture_output=True, timeout=END_S)
    assert p.returncode == status, (args, p.returncode, p.stderr)
    return p.stdout


class Same(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.worker = cluster.worker("scenes")
        cls.folder = cluster.folder

    def batch(self, name, lines, *more, status=0):
        out = self.folder / name
        manifest = self.folder / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = json.loads(pseg("batch", manifest, "--out", out, "--server", self.scheduler.target, "--json", *more,
                                  status=status))
        path = out / "results.jsonl"
        return out, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [], summary

    def test_the_same_bytes_as_one_by_one(self):
        lines = [{"image": str(SCENE), "prompts": PHRASES}]
        out, results, summary = self.batch("png", lines, "--format", "png")
        self.assertEqual(summary["succeeded"], 1)
        one, run = self.folder / "one", self.folder / "run"
        common = ["--image", SCENE, *(a for p in PHRASES for a in ("--prompt", p))]
        pseg("segment", *common, "--out", one, "--server", self.scheduler.target)
        pseg("run", *common, "--out", run)
        for i in range(2):
            mask = (out / results[0]["results"][i]["mask"]).read_bytes()
            self.assertEqual(mask, (one / f"mask-{i}.png").read_bytes())
            self.assertEqual(mask, (run / f"mask-{i}.png").read_bytes())

        _, results, _ = self.batch("rle", lines)
        name = results[0]["job"]
        job = json.loads(pseg("get", name, "--json", "--server", self.scheduler.target))
        for i, r in enumerate(results[0]["results"]):
            told = job["results"][i]
            rle = pseg("get", name, "--mask", i, "--encoding", "rle", "--server", self.scheduler.target)
            self.assertEqual(r["segmentation"], {"size": [224, 224], "counts": rle.decode()})
            self.assertEqual((r["prompt"], r["bbox"], r["area"]), (PHRASES[i], told["box"], told["area_px"]))
            self.assertAlmostEqual(r["score"], told["predicted_iou"], places=6)

        out, _, _ = self.batch("coco", lines, "--format", "coco")
        coco = json.loads((out / "results.json").read_text())
        self.assertEqual([c["segmentation"] for c in coco], [r["segmentation"] for r in results[0]["results"]])
        self.assertEqual([(c["image_id"], c["category_id"]) for c in coco], [(1, 1), (1, 2)])

    def test_failures_are_the_servers_own(self):
        broken = self.folder / "broken.png"
        broken.write_bytes(SCENE.read_bytes()[:300])
        text = self.folder / "text.jpg"
        text.write_text("no image")
        out, results, summary = self.batch("bad", [
            {"image": str(SCENE), "prompt": "a star"}, {"image": str(broken), "prompt": "a star"},
            {"image": str(text), "prompt": "a star"}, {"image": "gone.png", "prompt": "a star"},
            {"image": str(SCENE), "prompt": "x" * 5000}, {"image": str(SCENE), "prompt": "a star", "model": "unknown"},
            {"prompt": "a star"}], status=5)
        failures = {f["line"]: f["reason"] for f in map(json.loads, (out / "failures.jsonl").read_text().splitlines())}
        self.assertEqual(failures, {2: "IMAGE_UNDECODABLE", 3: "IMAGE_FORMAT_UNSUPPORTED", 4: "FILE_NOT_FOUND",
                                    5: "PROMPT_TOO_LONG", 6: "MODEL_UNKNOWN", 7: "IMAGE_MISSING"})
        self.assertEqual([r["line"] for r in results], [1])
        self.assertEqual((summary["succeeded"], summary["failed"]), (1, 6))

    def test_large_images_and_those_that_are_held(self):
        large = self.folder / "large.png"
        large.write_bytes(lib.png(4000, 3700, seed=7))
        lines = [{"image": str(large), "prompt": "a star"}, {"image": str(SCENE), "prompt": "a star"}] * 2
        _, first, _ = self.batch("large", lines)
        _, second, _ = self.batch("large2", lines, "--skip-held")
        self.assertEqual([len(first), len(second)], [4, 4])

        def masks(results):
            return {r["line"]: r["results"][0]["segmentation"] for r in results}

        self.assertEqual(masks(first), masks(second))
        self.assertEqual(masks(first)[1], masks(first)[3])

    def test_the_python_package(self):
        home = self.folder / "python"
        shutil.copytree("client/python/src/pseg", home / "pseg")
        shutil.copy(lib.DESCRIPTORS, home / "pseg" / "descriptors.binpb")
        sys.path.insert(0, str(home))
        import asyncio
        import pseg as package
        _, results, _ = self.batch("beside", [{"image": str(SCENE), "prompts": PHRASES}])
        wanted = [r["segmentation"]["counts"].encode() for r in results[0]["results"]]
        items = [(SCENE, PHRASES, "mine"), (b"no image", "a star")]
        with package.Client(self.scheduler.target) as client:
            found = list(client.batch(items, encoding=package.Encoding.RLE))

        async def run():
            async with package.AsyncClient(self.scheduler.target) as client:
                return [o async for o in client.batch(items, encoding=package.Encoding.RLE)]

        for outcomes in (found, asyncio.run(run())):
            outcomes.sort(key=lambda o: o.index)
            self.assertEqual([m.data for m in outcomes[0].value.masks], wanted)
            self.assertEqual((outcomes[0].id, outcomes[1].error.reason), ("mine", "IMAGE_FORMAT_UNSUPPORTED"))


class Killed(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.address = f"unix:{cluster.folder}/scheduler.sock"
        cls.start = lambda: (cluster.scheduler("--default-model", "empty", listen=cls.address), cluster.worker("empty"))
        cls.scheduler, cls.worker = cls.start()

    def test_client_scheduler_and_worker(self):
        n, out, manifest = 8000, self.cluster.folder / "out", self.cluster.folder / "list.jsonl"
        manifest.write_text("".join(
            json.dumps({"image": "gone.png" if i % 500 == 7 else str(SCENE), "prompt": f"item {i}"}) + "\n"
            for i in range(1, n + 1)))
        results = out / "results.jsonl"

        def start():
            return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", PSEG, "batch", manifest, "--out", out,
                                     "--server", self.address], env=ENV, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def size():
            return results.stat().st_size if results.exists() else 0

        p, killed = start(), []
        for kind in ["client", "worker", "scheduler"] * 2:
            before = size()
            # Something more has been written: it is killed in the middle of its work.
            lib.until("results", lambda: size() > before or p.poll() is not None)
            if p.poll() is not None:
                break
            killed.append(kind)
            if kind == "client":
                p.kill()
                p.communicate()
                p = start()
            elif kind == "worker":
                self.worker.kill()
                type(self).worker = self.cluster.worker("empty")
            else:
                self.scheduler.kill()
                pathlib.Path(self.address[5:]).unlink(missing_ok=True)
                type(self).scheduler = self.cluster.scheduler("--default-model", "empty", listen=self.address)
        said, err = p.communicate(timeout=END_S)
        self.assertEqual(p.returncode, 5, err)
        self.assertGreaterEqual(len(killed), 3, "it ended before the worst had happened")
        bad = list(range(7, n + 1, 500))
        found = [json.loads(line) for line in results.read_text().splitlines()]
        failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
        self.assertEqual(sorted(f["line"] for f in failures), bad)
        self.assertEqual(sorted(r["line"] for r in found), sorted(set(range(1, n + 1)) - set(bad)))
        for r in found:
            self.assertEqual(r["results"][0]["prompt"], f"item {r['line']}")
        # One job a line, and none besides.
        names = {r["job"] for r in found}
        self.assertEqual(len(names), len(found))


if __name__ == "__main__":
    lib.main()
