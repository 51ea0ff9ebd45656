"""A start with nothing compiled: a second process compiles, too, and only ever costs or saves time.

    python3 cold_start_test.py BIN

A worker that waits for a Redis which is not there says when its engine is open. Exit status 77: there is
no PoCL, or one core."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BIN = pathlib.Path(sys.argv.pop(1))
START_S = 300 * int(os.environ.get("TEST_SLOWER", 1))  # everything is compiled, maybe on a slow machine
BEGUN = r"kernels are compiled in a second process, too pid=(\d+)"


def is_there(pid):
    """Does the process run? One that nobody has reaped yet does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Worker:
    """A context manager; what it has compiled lies in `folder`, which lives on."""

    def __init__(self, folder, *args):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PSEG_", "POCL_"))}
        self.folder, self.log_path = folder, folder / "log"
        command = ["setpriv", "--pdeathsig", "KILL", "--", BIN / "pseg-worker", "--device", DEVICE, "--model", "scenes",
                   "--redis", f"unix:{folder}/none", "--cache", folder / "pseg", "--decoders", 0,
                   "--log-level", "debug", *args]
        with open(self.log_path, "wb") as out:
            self.child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env={**kept, "POCL_CACHE_DIR": str(folder / "pocl")})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def until(self, what, check):
        end, tick = time.monotonic() + START_S, threading.Event()
        while not (value := check()):
            assert self.child.poll() is None, f"the worker ended with {self.child.returncode}:\n{self.log()[-2000:]}"
            assert time.monotonic() < end, f"{what}: not within {START_S} s:\n{self.log()[-2000:]}"
            tick.wait(0.02)
        return value

    def says(self, pattern):
        return self.until(pattern, lambda: re.search(pattern, self.log()))

    def second(self):
        """The second process, once it works."""
        self.says(f"{BEGUN}|opened in")
        found = re.search(BEGUN, self.log())
        assert found, f"none was begun:\n{self.log()[-2000:]}"
        return int(found[1])

    def compiled(self):
        """What PoCL has, once the engine is open."""
        self.says("opened in")
        top = self.folder / "pocl"
        return {str(p.relative_to(top)) for p in top.rglob("*") if p.name == "program.bc" or p.suffix == ".so"
                if len(p.relative_to(top).parts) > 2}  # what lies higher up is half written


class ColdStart(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pseg-cold-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def place(self, name):
        (self.folder / name).mkdir()
        return self.folder / name

    def test_alone_or_not_the_same_is_compiled_and_then_nothing(self):
        with Worker(self.place("both")) as w:
            second = w.second()
            both = w.compiled()
            self.assertFalse(is_there(second))
            self.assertRegex(w.log(), r"info  worker the second process that compiled is (done|stopped)\n")
            n = int(re.search(r"stage=warm_up .*programs_compiled=(\d+) programs_cached=0\n", w.log())[1])
            w.until("all programs kept", lambda: len(list((w.folder / "pseg").glob("*.clbin"))) == n)
        with Worker(self.place("alone")) as w:
            os.kill(w.second(), signal.SIGKILL)
            alone = w.compiled()
            self.assertRegex(w.log(), "warn  worker the second process that compiled was ended by signal 9;")
        self.assertGreater(len(alone), n)
        self.assertEqual(both, alone)

        with Worker(self.folder / "both") as w:
            w.says("opened in")
            self.assertRegex(w.log(), f"stage=warm_up .*programs_compiled=0 programs_cached={n}\n")
            self.assertNotIn("second process", w.log())
            children = pathlib.Path(f"/proc/{w.child.pid}/task/{w.child.pid}/children").read_text().split()
            self.assertEqual([c for c in children if is_there(c)], [])

    def test_a_worker_of_one_thread_compiles_alone(self):
        with Worker(self.place("one"), "--threads", 1) as w:
            w.says("program ready file=")
            self.assertNotIn("second process", w.log())

    def test_the_second_process_dies_with_the_worker(self):
        for number in (signal.SIGKILL, signal.SIGTERM):
            with Worker(self.place(f"ends-{number}")) as w:
                second = w.second()
                self.assertTrue(is_there(second))
                w.child.send_signal(number)
                w.child.wait(START_S)
                end, tick = time.monotonic() + START_S, threading.Event()
                while is_there(second):
                    self.assertLess(time.monotonic(), end, "it lives on")
                    tick.wait(0.02)


def pocl():
    """The first device of PoCL that has several cores."""
    out = subprocess.run([BIN / "pseg-devices", "--json"], capture_output=True, check=False).stdout
    found = json.loads(out or "{}").get("devices", [])
    return next((d["id"] for d in found if "PoCL" in d["platform"] and d["compute_units"] > 1), None)


DEVICE = pocl()
if not DEVICE or not shutil.which("setpriv"):
    print("skipped: no device of PoCL with several cores" if not DEVICE else "skipped: no setpriv")
    sys.exit(77)
unittest.main()
