"""Reads the queue's event stream from Redis itself, without a gap, into the history."""
import collections
import threading
import time

import cluster as c
import history

TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")
KEPT = 50000  # entries to hold against another master's: no fail-over goes so far back
LOOK_S = 0.3  # between two looks at who is the master


class Watcher(threading.Thread):
    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.last, self.stopping = cluster, "0-0", False
        self.lock, self.ended = threading.Lock(), set()
        self.told, self.epoch, self.fault = collections.deque(maxlen=KEPT), None, None

    def run(self):
        try:
            self.follow()
        except BaseException as e:  # noqa: BLE001  (told by the main thread)
            self.fault = e

    def follow(self):
        r, look_at = None, 0
        while not self.stopping:
            try:
                if r is None or time.monotonic() >= look_at:
                    r, look_at = self.to_the_master(r), time.monotonic() + LOOK_S
                got = r("XREAD", "COUNT", 2000, "BLOCK", 200, "STREAMS", c.PREFIX + "events", self.last)
                for entry, fields in got[0][1] if got else ():
                    self.take(entry, fields)
            except (OSError, c.resp.Refused):
                r = None
                time.sleep(0.02)

    def to_the_master(self, r):
        """The connection, or another one if there is another master."""
        node, epoch = self.cluster.mastership()
        if r is None or epoch != self.epoch:
            r = node.connect(timeout_s=2) if node else self.cluster.connect()
        if epoch != self.epoch:
            if node and r("ROLE")[0] != "master":
                raise ConnectionError(f"{node.name} is no master yet")
            if self.epoch is not None:
                self.reconcile(r, node.name)
            self.epoch = epoch
        return r

    def reconcile(self, r, name):
        """A master has taken another's place: of what that one told the end may be missing, and is taken back."""
        stream = [(e, f) for e, f in r("XRANGE", c.PREFIX + "events", self.told[0][0], "+")] if self.told else []
        kept = history.common(list(self.told), stream)
        gone = [self.told.pop() for _ in range(len(self.told) - kept)][::-1]
        with self.lock:
            for _, fields in gone:
                self.ended -= {x["job"] for x in history.told_in(fields) if x["state"] in TERMINAL}
        self.last = self.told[-1][0] if self.told else "0-0"
        self.cluster.history.write("master", target=name, undone=[entry for entry, _ in gone])

    def take(self, entry, fields):
        for change in history.told_in(fields):
            self.cluster.history.write("change", entry=entry, **change)
            if change["state"] in TERMINAL:
                with self.lock:
                    self.ended.add(change["job"])
        self.told.append((entry, fields))
        self.last = entry

    def all_ended(self, jobs):
        with self.lock:
            return jobs <= self.ended
