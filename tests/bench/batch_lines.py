#!/usr/bin/env python3
"""Many lines through everything: `pseg batch`, one scheduler, one worker of the empty model, Redis with its log.

    python3 tests/bench/batch_lines.py --bin build/release/bin --lines 1000000

A manifest of so many lines on a thousand small images, of which one line in a thousand is no JSON. Tells the
lines a second, each process' time and largest resident memory, and that each line was told once. Needs Python
and Redis, 2 GB of disk and 1 GB of memory for a million lines."""
import argparse
import json
import pathlib
import random
import struct
import subprocess
import tempfile
import time
import zlib

from service_engine import Service, cpu_ms

IMAGES, BAD = 1000, 1000  # one line of so many is bad


def png(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + random.randbytes(3 * side) for _ in range(side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_manifest(folder, lines):
    random.seed(1)
    for i in range(IMAGES):
        (folder / f"{i}.png").write_bytes(png(32))
    with open(folder / "manifest.jsonl", "w") as f:
        for i in range(lines):
            good = json.dumps({"image": f"{i % IMAGES}.png", "prompts": ["a dog"]})
            f.write(('{"image": broken' if i % BAD == BAD // 2 else good) + "\n")


def peak_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def count_lines(out, lines):
    told = bytearray(lines + 1)
    n = {}
    for name in ("results", "failures"):
        n[name] = 0
        with open(out / f"{name}.jsonl") as f:
            for text in f:
                line = json.loads(text)["line"]
                assert not told[line], f"line {line} was told twice"
                told[line] = 1
                n[name] += 1
    assert sum(told) == lines, f"{lines - sum(told)} lines were not told"
    return n


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", type=pathlib.Path, required=True)
    a.add_argument("--lines", type=int, default=100000)
    a.add_argument("--worker", default="", help="options of the worker")
    a = a.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_manifest(folder, a.lines)
        service = Service(folder / "service")
        try:
            service.run(a.bin, "empty", a.worker.split(), ["--appendonly", "yes"])
            begin = time.monotonic()
            client = subprocess.Popen([a.bin / "pseg", "batch", folder / "manifest.jsonl", "--out", folder / "out",
                                       "--server", service.server], stdout=subprocess.DEVNULL)
            client_mib = 0
            while client.poll() is None:
                try:
                    client_mib = max(client_mib, peak_mib(client.pid))
                    client.wait(0.2)
                except (OSError, IndexError, subprocess.TimeoutExpired):
                    pass  # it has just ended, or has not
            took = time.monotonic() - begin
            rows = {name: (cpu_ms(p.pid), peak_mib(p.pid)) for name, p in service.all.items()}
        finally:
            service.stop()
        n = count_lines(folder / "out", a.lines)
    print(f"{a.lines} lines in {took:.1f} s: {a.lines / took:.0f} a second; {n['results']} results, "
          f"{n['failures']} failures, each line once; the client held {client_mib:.1f} MiB at most")
    for name, (ms, mib) in rows.items():
        print(f"{name:10} {1000 * ms / a.lines:7.0f} us of processor time a line, {mib:7.1f} MiB at most")


if __name__ == "__main__":
    main()
