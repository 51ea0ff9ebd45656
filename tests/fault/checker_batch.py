"""The part of the checker that is about batches: what the streams of results told.

A batch's ends are a list that only grows, and a result comes with its place in it. Where Redis has lost the end of
the list (a fail-over, a log that was torn or not synced) the stream says that it goes back, to which place, and tells
from there on what stands there now. So what counts is the list at last: each result at the place behind the one
before, but for those that a `rewound` takes back; a stream may go back only after a fault that can lose something,
and after a fail-over the order may change only from the first end on that was told within lag_s before it, or later.
"""
import collections

STATES = {3: "succeeded", 4: "failed", 5: "cancelled", 6: "expired"}


class Told:
    """What the reader of one batch holds."""

    def __init__(self, batch):
        self.batch, self.list, self.rewound_at = batch, [], float("-inf")
        self.gone, self.behind, self.oldest = [], 0, None  # taken back last, from which place on, and what may be

    def take(self, report, r):
        if r["place"] != len(self.list) + 1:
            report.broken("batch", f"{self.batch}: item {r['seq']} is told at place {r['place']} where "
                                   f"{len(self.list) + 1} was due")
        self.list.append(r)

    def go_back(self, report, r, oldest):
        self.settle(report)
        if oldest is None:
            report.broken("batch", f"{self.batch}: the stream went back to {r['place']} at {r['t']:.3f} s, and nothing "
                                   "explains it")
        if r["place"] > len(self.list):
            report.broken("batch", f"{self.batch}: the stream went back to {r['place']} of {len(self.list)}")
        self.gone, self.behind, self.oldest = self.list[r["place"]:], r["place"], oldest
        self.rewound_at = r["t"]
        del self.list[r["place"]:]
        report.rewound["times"] += 1
        report.rewound["told_again"] += len(self.gone)

    def settle(self, report):
        """Of what was taken back, what does not stand there again."""
        now = self.list[self.behind:]
        same = next((i for i, (a, b) in enumerate(zip(self.gone, now)) if (a["seq"], a["job"]) != (b["seq"], b["job"])),
                    min(len(self.gone), len(now)))
        moved = self.gone[same:]
        report.rewound["moved"] += len(moved)
        for x in moved:
            if self.oldest is not None and x["t"] < self.oldest:
                report.broken("undone", f"item {x['seq']} of batch {self.batch}, told at {x['t']:.3f} s, is told elsewhere "
                                        f"after {self.rewound_at:.3f} s; only what was told since {self.oldest:.3f} s may be")
        self.gone = []


class Losses:
    """By what a stream may go back: fail-overs by the times when they began, and what else may lose the end of a list,
    or put into it what a torn log has kept (see docs/reliability.md)."""

    def __init__(self, by, failovers, lag, own_s):
        """failovers: (when one began, until when readers may not have met it)."""
        options = by["begin"][0].get("options", {})
        kinds = {"disk_full"} | ({"redis_kill"} if options.get("fsync", "always") != "always" else set())
        self.failovers, self.lag, self.own_s = failovers, lag, own_s
        self.others = [f["t"] for f in by["fault"] if f["kind"] in kinds]

    def oldest(self, since, at):
        """The time since which ends may have been told that a stream takes back which goes back at `at` and did so
        at `since` before; None: it may not go back."""
        if any(t <= at for t in self.others):
            return float("-inf")
        return min((begun - self.lag for begun, met in self.failovers
                    if begun <= at and met + self.own_s > since), default=None)


def check_batches(report, by, losses):
    told, promised = {}, collections.Counter()
    for r in sorted((*by["result"], *by["rewound"]), key=lambda x: x["n"]):
        one = told.setdefault(r["batch"], Told(r["batch"]))
        if r["e"] == "result":
            one.take(report, r)
        else:
            one.go_back(report, r, losses.oldest(one.rewound_at, r["t"]))
    for r in by["promised"]:
        promised[r["batch"]] = max(promised[r["batch"]], r["next"] - 1)
    for batch in promised.keys() | told.keys():
        one = told.setdefault(batch, Told(batch))
        one.settle(report)
        found = collections.Counter(r["seq"] for r in one.list)
        twice, never = sorted(s for s, n in found.items() if n > 1), sorted(set(range(1, promised[batch] + 1)) - found.keys())
        if twice:
            report.broken("batch", f"{batch}: told twice: {twice[:10]}")
        if never:
            report.broken("batch", f"{batch}: never told: {never[:10]} of {promised[batch]}")
    for r in by["batch"]:
        results = told[r["batch"]].list
        found = collections.Counter(STATES.get(x["state"], str(x["state"])) for x in results)
        found["refused"] = sum(x["refused"] for x in results)
        wanted = collections.Counter({k: n for k, n in r["counts"].items() if n})
        if +found != wanted:
            report.broken("batch", f"{r['batch']}: counts {dict(wanted)}, results {dict(+found)}")
        if promised[r["batch"]] != r["items"]:
            report.broken("batch", f"{r['batch']}: {promised[r['batch']]} of {r['items']} items were taken")
    for item, n in collections.Counter(r["item"] for r in by["final"] if "item" in r).items():
        if n > 1:
            report.broken("item_twice", f"{item}: {n} jobs")
