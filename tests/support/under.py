"""The tests of a build, each under a tool that sees what a test alone does not:

    python3 tests/support/under.py tsan BUILD [-R REGEX] [-j N] [--out DIR]
    python3 tests/support/under.py valgrind BUILD [-R REGEX] [-j N] [--out DIR]

tsan: BUILD is one of the preset `tsan`. valgrind: any without a sanitizer; its test programs run under memcheck, and so
do the project's programs that a test in another language starts. What each process reports lies in DIR (BUILD/tsan-out or
BUILD/valgrind-out), a folder for each test. Exit status 1: a report or a failed test.

Limits of tests are stretched, CTest's here and the tests' own by TEST_SLOWER. What is left out, with its
reason, is LEFT_OUT, and is counted."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

SUPPORT = pathlib.Path(__file__).resolve().parent
ROOT = SUPPORT.parent.parent
SLOWER = {"tsan": 10, "valgrind": 20}
PROGRAMS = ("pseg", "pseg-scheduler", "pseg-worker")  # that tests in other languages start
LEFT_OUT = {
    "both": (
        ("style|promise|buf_lint|fetch_refcoco_m|fault_checker.*|fault_campaign|soak_judge|autoscale_plot|ops_syntax",
         "runs no program of ours"),
        ("install|closure|config_docs|deploy|pod_costs", "is about files, not about what programs do"),
        ("client_.*", "builds clients in other languages; api_* ask the same of the programs"),
        (".*bench", "measures time"),
    ),
    "tsan": (
        ("image_memory|image_large", "measures memory"),
    ),
    "valgrind": (
        ("image_memory|image_large|batch_plan", "measures memory"),
        ("cl|cl_rehearsal|cold_start|ops.*|golden_.*|train.*|serve|eval_(page_)?program|broken_device|threads|api_(masks|process|features|estimate|prepare)",
         "compiles kernels, hours under memcheck"),
        ("fault_.*", "is judged by time"),
    ),
}


def reason_to_leave(tool, name):
    for names, reason in LEFT_OUT["both"] + LEFT_OUT[tool]:
        if re.fullmatch(names, name):
            return reason
    return None


def tests_of(build, regex):
    found = json.loads(subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"], check=True,
                                      stdout=subprocess.PIPE).stdout)["tests"]
    for test in found:
        test["p"] = {p["name"]: p["value"] for p in test["properties"]}
        if "command" not in test:
            sys.exit(f"{test['name']} is not built: build all of {build} first")
    return [t for t in found if re.search(regex, t["name"])]


class Tool:
    def __init__(self, name, build, out):
        self.name, self.build, self.out = name, build, out

    def command(self, test, folder):
        """The test's command and environment under this tool; what is found goes to `folder`."""
        env = {**os.environ, **dict(e.split("=", 1) for e in test["p"].get("ENVIRONMENT", [])),
               "TEST_SLOWER": str(SLOWER[self.name])}
        if self.name == "tsan":
            env["TSAN_OPTIONS"] = (f"exitcode=66:log_path={folder}/report:log_exe_name=1:"
                                   f"ignore_noninstrumented_modules=1:suppressions={SUPPORT}/tsan.supp")
            return test["command"], env
        env["JSIMD_FORCENONE"] = "1"  # what libjpeg-turbo's SIMD code writes memcheck takes for uninitialised
        check = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full",
                 "--show-leak-kinds=definite,indirect", "--errors-for-leak-kinds=definite,indirect",
                 f"--suppressions={SUPPORT}/valgrind.supp", "--num-callers=30", f"--log-file={folder}/report.%p"]
        command = test["command"]
        if self.of_ours(command[0]):
            return check + (self.shorter(command) if test["name"].startswith("fuzz_") else command), env
        wrapped = folder / "bin"
        wrapped.mkdir()
        for program in (self.build / "bin").iterdir():
            if program.name in PROGRAMS:
                script = wrapped / program.name
                script.write_text(f"#!/bin/sh\nexec {' '.join(check)} {program} \"$@\"\n")
                script.chmod(0o755)
            else:
                (wrapped / program.name).symlink_to(program)
        return [str(wrapped) if a == str(self.build / "bin") else a for a in command], env

    def of_ours(self, program):
        return self.build in pathlib.Path(program).parents

    @staticmethod
    def shorter(command):
        """The corpora as they are, and few mutations of them."""
        if "--mutations" in command:
            at = command.index("--mutations") + 1
            return command[:at] + ["3"] + command[at + 1:]
        return command

    def run(self, test):
        """(name, outcome, seconds, reports)"""
        name = test["name"]
        folder = self.out / name
        folder.mkdir(parents=True)
        command, env = self.command(test, folder)
        begin, outcome = time.monotonic(), "passed"
        with open(folder / "output", "wb") as output:
            try:
                status = subprocess.run(command, cwd=test["p"]["WORKING_DIRECTORY"], env=env, stdin=subprocess.DEVNULL,
                                        stdout=output, stderr=output, check=False,
                                        timeout=test["p"].get("TIMEOUT", 300) * SLOWER[self.name]).returncode
                outcome = {0: "passed", 77: "skipped"}.get(status, f"failed ({status})")
            except subprocess.TimeoutExpired:
                outcome = "failed (time is over)"
        reports = [r for r in folder.glob("report*") if r.stat().st_size]
        return name, outcome, time.monotonic() - begin, reports


def main():
    p = argparse.ArgumentParser()
    p.add_argument("tool", choices=SLOWER)
    p.add_argument("build", type=pathlib.Path)
    p.add_argument("-R", default="")
    p.add_argument("-j", type=int, default=os.cpu_count())
    p.add_argument("--out", type=pathlib.Path)
    a = p.parse_args()
    build = a.build.resolve()
    tool = Tool(a.tool, build, (a.out or build / f"{a.tool}-out").resolve())
    shutil.rmtree(tool.out, ignore_errors=True)
    tests, counts, bad = [], {"left out": 0}, []
    for test in tests_of(build, a.R):
        reason = reason_to_leave(a.tool, test["name"])
        if reason:
            counts["left out"] += 1
            print(f"{test['name']:24} left out: {reason}")
        else:
            tests.append(test)
    with concurrent.futures.ThreadPoolExecutor(a.j) as pool:
        for done in concurrent.futures.as_completed([pool.submit(tool.run, t) for t in tests]):
            name, outcome, seconds, reports = done.result()
            counts[outcome.split()[0]] = counts.get(outcome.split()[0], 0) + 1
            if reports or outcome.startswith("failed"):
                bad.append(name)
            print(f"{name:24} {outcome}, {seconds:.0f} s{f', {len(reports)} reports' if reports else ''}", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.items()) + f"; see {tool.out} for: {' '.join(bad)}" * bool(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
