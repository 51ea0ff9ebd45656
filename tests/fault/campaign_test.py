#!/usr/bin/env python3
"""campaign.py with runs that are made up: what is summed, what is not run again, what fails a campaign."""
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

import campaign

FAKE = '''
import json, pathlib, sys
a = sys.argv
seed, out = a[a.index("--seed") + 1], pathlib.Path(a[a.index("--out") + 1])
(out / "history.jsonl").write_text("what happened")
(out / "args.json").write_text(json.dumps(a[3:]))
if seed == "9":
    sys.exit(77)
broken = [{"promise": "lost", "what": "a job"}] if seed == "8" else []
(out / "report.json").write_text(json.dumps({"jobs": 100 + int(seed), "faults_total": 3, "faults": {"redis_kill": 2,
    "clock": 1}, "lost": len(broken), "published_twice": 0, "violations": broken, "seconds": 1.5,
    "states": {"SUCCEEDED": 100}, "recovery_s": {"n": 2, "p50": 0.5, "max": float(seed)}}))
sys.exit(bool(broken))
'''


class Campaign(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        fake = self.folder / "fake.py"
        fake.write_text(FAKE, encoding="utf-8")
        self.addCleanup(setattr, campaign, "RUN", campaign.RUN)
        campaign.RUN = fake

    def run_it(self, seeds, *theirs):
        self.addCleanup(setattr, sys, "argv", sys.argv)
        sys.argv = ["campaign.py", "BIN", "DESC", "--out", str(self.folder / "out"), "--seeds", seeds, "--", *theirs]
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
            with self.assertRaises(SystemExit) as end:
                campaign.main()
        path = self.folder / "out" / "sum.json"
        return end.exception.code, json.loads(path.read_text()) if path.exists() else None

    def test_sums_up(self):
        status, found = self.run_it("1-3", "--jobs", "7")
        self.assertEqual(status, 0)
        self.assertEqual((found["runs"], found["jobs"], found["faults"]), (3, 306, 9))
        self.assertEqual(found["faults_by_kind"], {"clock": 3, "redis_kill": 6})
        self.assertEqual((found["recovered"], found["recovery_max_s"]), (6, 3.0))
        self.assertIn("7", json.loads((self.folder / "out/2/args.json").read_text()))
        self.assertFalse((self.folder / "out/2/history.jsonl").exists())

    def test_goes_on(self):
        self.run_it("1-2")
        (self.folder / "out/1/args.json").unlink()
        status, found = self.run_it("1-3")
        self.assertEqual((status, found["jobs"]), (0, 306))
        self.assertFalse((self.folder / "out/1/args.json").exists())  # it was not run again

    def test_a_broken_promise_fails(self):
        status, found = self.run_it("7-8")
        self.assertEqual((status, found["lost"], found["violations"]), (1, 1, 1))
        self.assertTrue((self.folder / "out/8/history.jsonl").exists())

    def test_no_verdict_fails(self):
        status, found = self.run_it("9-10")
        self.assertEqual((status, found["without_verdict"], found["runs"]), (1, [9], 1))

    def test_refuses_no_range(self):
        self.assertEqual(self.run_it("3-1"), (2, None))


if __name__ == "__main__":
    unittest.main()
