"""What the eval_*_test.py share.

    python3 eval_x_test.py BIN [NAME ...]      (NAME: parts of the names of tests to run)
"""
import json
import os
import pathlib
import subprocess
import sys
import traceback

BIN = pathlib.Path(sys.argv[1])
ENV = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}
DEADLINE_S = 200  # of one command, on a slow machine under sanitizers


def run(program, *argv, status=0):
    """(stdout, stderr) of a program that must end with this status."""
    p = subprocess.run([str(BIN / program), *map(str, argv)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, env=ENV, timeout=DEADLINE_S)
    err = p.stderr.decode()
    assert p.returncode == status, f"{argv}: status {p.returncode}, not {status}: {err}"
    return p.stdout.decode(), err


def evaluate(out, *argv, status=0):
    """The report of `pseg eval --out OUT ...`, and standard error."""
    _, err = run("pseg-eval", "--out", out, "--replicates", 200, *argv, status=status)
    path = pathlib.Path(out) / "report.json"
    if status:
        assert not list(pathlib.Path(out).glob("*")), f"{argv}: left files behind"
        assert len(err.splitlines()[-1]) < 400 and err.splitlines()[-1].startswith("error: "), err
        return None, err
    return json.loads(path.read_text()), err


def records(out):
    return [json.loads(line) for line in (pathlib.Path(out) / "records.jsonl").read_text().strip().split("\n")]


def scenes(folder, first, count, size=96):
    """A data set of scenes on disk: its lines, to be changed and written with write_lines."""
    run("pseg-scenes", "--out", folder, "--seed", first, "--count", count, "--size", size, "--quiet")
    return [json.loads(line) for line in (pathlib.Path(folder) / "scenes.jsonl").read_text().splitlines()]


def write_lines(folder, lines):
    path = pathlib.Path(folder) / "scenes.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def main(tests):
    wanted, failed = sys.argv[2:], 0
    for test in tests:
        if wanted and not any(w in test.__name__ for w in wanted):
            continue
        try:
            test()
            print(f"ok {test.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {test.__name__}", flush=True)
            traceback.print_exc()
    sys.exit(1 if failed else 0)
