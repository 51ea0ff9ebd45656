#!/usr/bin/env python3
"""Writes tests/fuzz/redis_corpus: answers of the forms that Redis gives to the queue's functions.
    python3 tests/fuzz/redis_seeds.py tests/fuzz/redis_corpus"""
import pathlib
import sys


def resp(x):
    if x is None:
        return b"$-1\r\n"
    if isinstance(x, int):
        return b":%d\r\n" % x
    if isinstance(x, list):
        return b"*%d\r\n" % len(x) + b"".join(map(resp, x))
    if isinstance(x, Exception):
        return b"-" + str(x).encode() + b"\r\n"
    return b"$%d\r\n" % len(x.encode()) + x.encode() + b"\r\n"


JOB = "0123456789abcdef" * 2
VIEW = [JOB, "team", "r1", "QUEUED", "spec", "", "LEASE_LOST", "why", "1", "", "1700000000000000", "", "", "1", "", "60000",
        "scenes", "team:00", "w1"]
CASE = [JOB, "team", "scenes", "DEVICE_FAILED", "why", "3", "1700000000000000", "attempt 1", "r1"]
ANSWERS = [  # in the order of queue_reply_parsers; asked for; answer
    (1, [1, *VIEW]), (1, VIEW), (2, [VIEW, []]), (1, [JOB, VIEW]), (2, [VIEW, "mask", None]), (1, "image"),
    (1, [1, 100, "1700000000000"]), (2, [100, "1700000000000", 0, "0"]), (1, [["w1", "scenes", "d", "cpu", "0.1"]]),
    (1, [[JOB, 1, 1, "team", "spec", "team:00", "1", "2", "0"]]), (4, ["ok", "lost", "cancel", "expired"]),
    (1, "SUCCEEDED"), (1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), (2, [CASE, CASE]), (1, CASE), (1, 1), (1, [[1, *VIEW]]), (1, "OK"),
    (1, [["pseg:{default}:events", [["1-1", ["id", JOB, "state", "RUNNING", "worker", "w1", "id", JOB, "state", "FAILED"]]]],
         ["pseg:{default}:wake:scenes", [["2-1", ["w", ""]]]]])]
ERRORS = ["PSEG QUEUE_FULL 5 jobs", "OOM command not allowed", "LOADING Redis is loading", "ERR Function not found",
          "MOVED 1 127.0.0.1:7000"]


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for i, (asked, answer) in enumerate(ANSWERS):
        (folder / f"answer{i:02}").write_bytes(bytes([i, asked]) + resp(answer))
    (folder / "errors").write_bytes(bytes([0, 1]) + b"".join(resp(Exception(e)) for e in ERRORS))
    (folder / "deep").write_bytes(bytes([2, 1]) + b"*1\r\n" * 9 + b":1\r\n")


main()
