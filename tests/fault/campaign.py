#!/usr/bin/env python3
"""Many runs of fault_run.py, one seed after another, and what they come to.

    campaign.py BIN DESCRIPTORS --out FOLDER --seeds FIRST-LAST [-- options of fault_run.py]

Each seed has a service, a Redis and a folder of its own, FOLDER/SEED; a seed whose folder has a report is not run
again, so a campaign that was stopped goes on where it was. Prints a line a seed and the sum, which FOLDER/sum.json
has, too. The histories of runs that kept every promise are removed (0.7 KB a job). Exit status 0: every run kept
every promise."""
import argparse
import collections
import json
import pathlib
import subprocess
import sys

RUN = pathlib.Path(__file__).with_name("fault_run.py")


def options():
    own, theirs = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, theirs = own[:at], own[at + 1:]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bin")
    p.add_argument("descriptors")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--seeds", required=True, help="FIRST-LAST")
    o = p.parse_args(own)
    first, _, last = o.seeds.partition("-")
    if not first.isdigit() or not last.isdigit() or int(last) < int(first):
        p.error(f"--seeds: {o.seeds!r} is not FIRST-LAST, two numbers that rise")
    o.seeds = range(int(first), int(last) + 1)
    return o, theirs


def report_of(o, theirs, seed):
    """The report of a seed, or None if its run came to no verdict."""
    folder = o.out / str(seed)
    path = folder / "report.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "run.log", "wb") as log:
            subprocess.run([sys.executable, "-B", RUN, o.bin, o.descriptors, *theirs, "--seed", str(seed), "--out", folder],
                           stdout=log, stderr=log, check=False)
    if not path.exists():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if not report["violations"]:
        (folder / "history.jsonl").unlink(missing_ok=True)
    return report


class Sum:
    def __init__(self):
        self.d = {"runs": 0, "without_verdict": [], "jobs": 0, "faults": 0, "lost": 0, "published_twice": 0,
                  "violations": 0, "seconds": 0.0, "recovered": 0, "recovery_max_s": 0.0}
        self.kinds, self.states = collections.Counter(), collections.Counter()

    def add(self, seed, r):
        d = self.d
        if r is None:
            d["without_verdict"].append(seed)
            return
        d["runs"] += 1
        d["jobs"] += r["jobs"]
        d["faults"] += r["faults_total"]
        d["lost"] += r["lost"]
        d["published_twice"] += r["published_twice"]
        d["violations"] += len(r["violations"])
        d["seconds"] = round(d["seconds"] + r["seconds"], 1)
        d["recovered"] += r["recovery_s"]["n"]
        d["recovery_max_s"] = max(d["recovery_max_s"], r["recovery_s"].get("max", 0))
        self.kinds.update(r["faults"])
        self.states.update(r["states"])

    def as_dict(self):
        return {**self.d, "faults_by_kind": dict(sorted(self.kinds.items())), "states": dict(sorted(self.states.items()))}

    def failed(self):
        return bool(self.d["violations"] or self.d["without_verdict"])


def line_of(seed, r):
    if r is None:
        return f"seed {seed}: no verdict, see its run.log"
    q = r["recovery_s"]
    return (f"seed {seed}: jobs {r['jobs']}  faults {r['faults_total']}  lost {r['lost']}  twice {r['published_twice']}  "
            f"broken {len(r['violations'])}  recovery p50 {q.get('p50', '-')} max {q.get('max', '-')} s  in {r['seconds']} s")


def main():
    o, theirs = options()
    total = Sum()
    for seed in o.seeds:
        r = report_of(o, theirs, seed)
        total.add(seed, r)
        print(line_of(seed, r), flush=True)
        (o.out / "sum.json").write_text(json.dumps(total.as_dict(), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(total.as_dict(), indent=1))
    sys.exit(1 if total.failed() else 0)


if __name__ == "__main__":
    main()
