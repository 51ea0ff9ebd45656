"""The history of a fault run: one JSON object a line, each with "e" (what) and "t" (seconds since the run
began, by one monotonic clock). What happened is written when it happened; judging it is checker.py's.

    begin    seed, lease_s, scan_s, slack_s, lag_s
    submit   rid, tenant, model, priority, deadline    before the first call that asks for the job
    ack      rid, job                                  the call has answered OK: from now on it is promised. Of an item
                                                       that is told again the last one counts
    refused  rid, reason                               the call has failed for good; no promise was given
    promised batch, next                               the items before number `next` are safe
    result   batch, seq, place, state, refused, job    the stream of results has told of this item, as the place-th end
    rewound  batch, place                              the stream has gone back: what it tells next is told behind `place`
    batch    batch, items, counts                      the batch at its end
    cancel   rid                                       a cancellation was asked for
    change   job, state, entry, worker                 one entry of the queue's event stream, in its order
    master   target, undone                            another master is read: entries of the stream that were told
                                                       before and that it does not have
    gap      entries                                   the stream was cut before it was read: the run is void
    fault    kind, target, held                        of a worker: the jobs that it held at that moment
    healed   kind, target                              the fault is over (a restart, a thaw, a line let through, a master that promises)
    back     kind, target                              a failed-over server follows the new master
    exit     target, status, wanted                    a process has ended; wanted: after SIGTERM
    final    job, state, attempts, tenant, reason, item  as a scheduler tells it after the load has ended
    left     key                                       in Redis when all times to live have passed
    end
"""
import json
import sys
import threading
import time


class Writer:
    """Any thread may write; the order in the file is that of the calls."""

    def __init__(self, path):
        self.file, self.lock, self.began = open(path, "w", 1, "utf-8"), threading.Lock(), time.monotonic()

    def now(self):
        return time.monotonic() - self.began

    def write(self, what, **fields):
        with self.lock:
            self.file.write(json.dumps({"e": what, "t": round(self.now(), 6), **fields}) + "\n")

    def close(self):
        with self.lock:
            self.file.close()


class Record:
    """A record in a third of a dict's memory: those of one shape share their keys, equal texts are one."""
    __slots__ = ("shape", "values")
    shapes = {}

    def __init__(self, fields):
        keys = tuple(fields)
        self.shape = self.shapes.setdefault(keys, {k: i for i, k in enumerate(keys)})
        self.values = tuple(sys.intern(v) if isinstance(v, str) else v for v in fields.values())

    def __getitem__(self, key):
        return self.values[self.shape[key]]

    def __contains__(self, key):
        return key in self.shape

    def get(self, key, default=None):
        return self.values[self.shape[key]] if key in self.shape else default


def records(path):
    """One after the other: a long history does not fit into memory."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def common(told, stream):
    """How many of the entries that were told the stream has too, from the first on: what comes after them is
    another history."""
    n = 0
    while n < min(len(told), len(stream)) and told[n] == stream[n]:
        n += 1
    return n


def told_in(fields):
    """An entry tells of one job or of several: id, worker if it has one, state, again and again. Tenant and batch
    stand before those that they hold for. An id may stand for items of a pack that follow one another."""
    found, of = [], []
    for name, value in zip(fields[::2], fields[1::2]):
        if name == "id":
            of = [{"job": job} for job in jobs_of(value)]
            found += of
        elif name not in ("tenant", "batch"):
            for change in of:
                change[name] = value
    return found


def jobs_of(member):
    """PREFIX, the first index, '+' and their number, both in two hexadecimal digits; or a job's id."""
    if "+" not in member:
        return [member]
    prefix, first, n = member[:30], int(member[30:32], 16), int(member[33:], 16)
    return [f"{prefix}{i:02x}" for i in range(first, first + n)]
