#!/usr/bin/env python3
"""Masks of a 12-megapixel photo a second, fetched by six clients, with one and with more threads that encode.

    mask_load.py BIN DESCRIPTORS [--threads N]... [--rounds N] [--seconds S]

The schedulers take turns on one Redis and one worker. Clients and servers share the processors."""
import argparse
import pathlib
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("bin")
arguments.add_argument("descriptors")
arguments.add_argument("--threads", type=int, action="append", help="1 and 2 if not given")
arguments.add_argument("--rounds", type=int, default=3)
arguments.add_argument("--seconds", type=float, default=4)
a = arguments.parse_args()

import lib_pseg as lib
from lib_pseg import pb

CLIENTS, ENCODINGS = 6, {"RLE": pb.MASK_ENCODING_COCO_RLE, "PNG": pb.MASK_ENCODING_PNG}


def rate(stub, job, encoding):
    done, begin = [], time.monotonic()

    def client():
        request = pb.FetchMasksRequest(name=job.name, format=pb.MaskFormat(encoding=encoding))
        while time.monotonic() < begin + a.seconds:
            done.append(list(stub.FetchMasks(request, timeout=lib.CALL_S)))
    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return len(done) / (time.monotonic() - begin)


with lib.Cluster() as cluster:
    counts = a.threads or [1, 2]
    stubs = {n: cluster.stub(cluster.scheduler("--default-model", "scenes", "--mask-threads", n)) for n in counts}
    cluster.worker("scenes")
    any_stub = stubs[counts[0]]
    job = lib.wait(any_stub, lib.create(any_stub, image=lib.png(4000, 3000)).name)
    assert job.state == pb.STATE_SUCCEEDED, job
    found = {(n, e): [] for n in counts for e in ENCODINGS}
    for _ in range(a.rounds):
        for (n, e), rates in found.items():
            rates.append(rate(stubs[n], job, ENCODINGS[e]))
    for (n, e), rates in found.items():
        print(f"{n} threads, {e}: {statistics.median(rates):.0f} masks/s")
