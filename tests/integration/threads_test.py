"""Threads of the CPU device: their number, and the CPUs on which they may run.

    python3 threads_test.py BIN

A worker that waits for a Redis which is not there has its device open: its threads are read from
/proc/PID/task, where drivers' threads are named "pseg-cl". Exit status 77: there is no PoCL."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BIN = pathlib.Path(sys.argv.pop(1))
ALLOWED = os.sched_getaffinity(0)
START_S = 90  # kernels may have to be compiled, under sanitizers


def environment(extra):
    """Ours without what the user set about threads."""
    kept = {k: v for k, v in os.environ.items()
            if not k.startswith(("PSEG_", "POCL_MAX", "POCL_CPU", "POCL_AFFINITY", "CL_CONFIG", "DPCPP"))}
    return {**kept, **extra}


class Worker:
    """A context manager; .threads is a list of the sets of CPUs of the device's threads."""

    def __init__(self, *args, cpus=None, **extra):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pseg-threads-"))
        self.log = self.folder / "log"
        before = ["taskset", "-c", ",".join(map(str, cpus))] if cpus else []
        command = [*before, BIN / "pseg-worker", "--device", DEVICE, "--redis", f"unix:{self.folder}/none", *args]
        with open(self.log, "wb") as out:
            self.child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env=environment(extra))

    def __enter__(self):
        end, tick = time.monotonic() + START_S, threading.Event()
        while "opened in" not in self.log.read_text(errors="replace"):
            said = self.log.read_text(errors="replace")[-2000:]
            assert self.child.poll() is None, f"the worker ended with {self.child.returncode}:\n{said}"
            assert time.monotonic() < end, f"no device within {START_S} s:\n{said}"
            tick.wait(0.02)
        self.threads = []
        for task in pathlib.Path(f"/proc/{self.child.pid}/task").iterdir():
            if (task / "comm").read_text() == "pseg-cl\n":
                self.threads.append(os.sched_getaffinity(int(task.name)))
        return self

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait(60)
        shutil.rmtree(self.folder)


class Threads(unittest.TestCase):
    def test_one_for_each_cpu_and_each_on_its_own(self):
        with Worker() as w:
            self.assertEqual(sorted(map(sorted, w.threads)), [[c] for c in sorted(ALLOWED)])
            name = pathlib.Path(f"/proc/{w.child.pid}/comm").read_text()
            self.assertEqual(name, "pseg-worker\n")  # the name was given back

    def test_a_process_bound_to_a_cpu_gets_one_thread_there(self):
        for cpu in sorted(ALLOWED)[-2:]:
            with Worker(cpus=[cpu]) as w:
                self.assertEqual(w.threads, [{cpu}])

    def test_fewer_threads_than_cpus_go_where_the_kernel_puts_them(self):
        if len(ALLOWED) < 2:
            self.skipTest("one CPU")
        with Worker("--threads", 1) as a, Worker(PSEG_THREADS="1") as b:
            self.assertEqual(a.threads, [ALLOWED])
            self.assertEqual(b.threads, [ALLOWED])

    def test_what_the_user_set_holds(self):
        n = len(ALLOWED) + 1
        for name in ("POCL_MAX_PTHREAD_COUNT",):  # later names are unknown to PoCL 3
            with Worker(**{name: str(n)}) as w:
                self.assertEqual(w.threads, [ALLOWED] * n)
            with Worker("--threads", n + 1, **{name: str(n)}) as w:
                self.assertEqual(w.threads, [ALLOWED] * (n + 1))
        with Worker(POCL_AFFINITY="0") as w:
            self.assertEqual(w.threads, [ALLOWED] * len(ALLOWED))


def pocl():
    """The id of the first device of PoCL."""
    out = subprocess.run([BIN / "pseg-devices", "--json"], capture_output=True, check=False).stdout
    found = json.loads(out or "{}").get("devices", [])
    return next((d["id"] for d in found if "PoCL" in d["platform"]), None)


DEVICE = pocl()
if not DEVICE or not shutil.which("taskset"):
    print("skipped: no device of PoCL" if not DEVICE else "skipped: no taskset")
    sys.exit(77)
unittest.main()
