#!/usr/bin/env python3
"""The generic clients that docs/api.md shows, with server reflection alone: grpcurl and buf curl, each
where it is installed."""
import base64
import json
import shutil
import subprocess
import sys
import unittest

import lib_pseg as lib

GRPCURL, BUF = shutil.which("grpcurl"), shutil.which("buf")
if not GRPCURL and not BUF:
    print("skipped: neither grpcurl nor buf is installed")
    sys.exit(77)
NOBODY = json.dumps({"name": "jobs/" + "0" * 32})


class Tools(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.worker = cluster.worker("empty")
        cls.segment = json.dumps({"job": {"content": base64.b64encode(lib.SCENE).decode(),
                                          "prompts": [{"text": "the small red circle"}]},
                                  "format": {"encoding": "MASK_ENCODING_COCO_RLE"}})

    def run_tool(self, *args, data=None):
        return subprocess.run(args, input=data, capture_output=True, text=True, timeout=lib.CALL_S, check=False)

    def good(self, *args, **kw):
        done = self.run_tool(*args, **kw)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def check_segment(self, text):
        reply = json.loads(text)
        self.assertEqual(reply["job"]["state"], "STATE_SUCCEEDED")
        self.assertEqual((reply["masks"][0]["width"], reply["masks"][0]["height"]), (224, 224))

    @unittest.skipUnless(GRPCURL, "no grpcurl")
    def test_grpcurl(self):
        call = (GRPCURL, "-plaintext")
        target = self.scheduler.target
        self.assertIn(lib.SERVICE, self.good(*call, target, "list").split())
        self.assertIn("rpc Segment", self.good(*call, target, "describe", lib.SERVICE))
        self.assertIn('"empty"', self.good(*call, "-d", "{}", target, f"{lib.SERVICE}/ListModels"))
        self.check_segment(self.good(*call, "-d", "@", target, f"{lib.SERVICE}/Segment", data=self.segment))
        failed = self.run_tool(*call, "-d", NOBODY, target, f"{lib.SERVICE}/GetJob")
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("JOB_NOT_FOUND", failed.stderr)

    @unittest.skipUnless(BUF, "no buf")
    def test_buf_curl(self):
        call = (BUF, "curl", "--http2-prior-knowledge", "--protocol", "grpc")
        url = f"http://{self.scheduler.target}"
        self.assertIn(f"{lib.SERVICE}/Segment", self.good(*call, url, "--list-methods").split())
        for version in ("grpc-v1", "grpc-v1alpha"):
            self.assertIn('"empty"', self.good(*call, "--reflect-protocol", version, f"{url}/{lib.SERVICE}/ListModels"))
        self.check_segment(self.good(*call, "-d", "@-", f"{url}/{lib.SERVICE}/Segment", data=self.segment))
        failed = self.run_tool(*call, "-d", NOBODY, f"{url}/{lib.SERVICE}/GetJob")
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("not_found", failed.stderr)
        self.assertIn("google.rpc.ResourceInfo", failed.stderr)

    @unittest.skipUnless(BUF, "no buf")
    def test_buf_lint(self):
        self.assertEqual(self.good(BUF, "lint", "proto"), "")


if __name__ == "__main__":
    lib.main()
