#!/usr/bin/env python3
"""Reads the history of a fault run and says which promises it breaks. Knows nothing of the processes that
made it.

    checker.py HISTORY [REPORT.json]     exit status 0: every promise was kept

What it asserts, by the names that a violation carries:

    lost           an acknowledged job has reached a terminal state, in the stream and in the final reading
    ended_twice    no job has more than one terminal event: so no result is published twice
    disagrees      the final reading tells the state that the stream told
    order          of two jobs of one tenant, model and priority, of which one was acknowledged before the other was
                   asked for, the first is begun first; across a jump of Redis' clock there is no order
    late           a job whose worker was killed or frozen is taken from it, and begun elsewhere, within
                   lease + scan + slack; time in which Redis was away does not count
    expired_late   a job with a deadline that ends as EXPIRED does so within 1 s + slack of it, unless
                   Redis' clock jumped meanwhile
    failed         no job ends as FAILED that was not made to
    batch          every item of a batch that was promised has one result, none has two but where the stream said that
                   it goes back, and the batch's counts are those of its results (checker_batch.py)
    item_twice     no item of a batch was made two jobs of
    drain          a process that is asked to stop exits with 0
    attempt_burnt  a job that ended well after only a drain has one attempt
    left           no key is left in Redis
    undone         what a master told is missing on the one that took its place only where a fail-over explains it
    void           the history is whole: it has begun, ended, and the stream was read without a gap

Redis replicates after it has answered: a master that dies or freezes may have told of changes that the next master
never got. The watcher holds what it was told against the next master's stream (`master`); entries that are missing
there are undone, and so is what was done by them: those jobs wait, or run, once more. All promises hold for what is
left, the surviving history: in it each acknowledged job ends, once, in the state that the final reading tells. An
entry may be undone only if it was told within lag_s before a fail-over began, or later. A fail-over begins with its
fault; one that nobody made, for Sentinels may take a slow master for dead, OWN_S before it was seen. How many entries
and how many ends were undone, and how many of those jobs then ended in another state than was told first, is counted.
"""
import bisect
import collections
import json
import sys

import checker_batch
import history

TERMINAL = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}
FAILOVER = {"failover_kill", "failover_freeze", "failover_behind"}
BROKER = {"redis_kill", "redis_freeze", "redis_full", "disk_full", "net_cut", "net_hold", "clock", *FAILOVER}
OWN_S = 10.0    # from what makes Sentinels choose another master until the watcher reads that one
SETTLE_S = 3.0  # after Redis is back: a time-out of 2 s, and a second until it is dialled again


class Report:
    def __init__(self):
        self.violations = []
        self.counts = collections.Counter()
        self.faults = collections.Counter()
        self.states = collections.Counter()
        self.recovery = []
        self.expiry = []
        self.publications_twice = self.lost = 0
        self.failed_over = {}
        self.rewound = collections.Counter(times=0, told_again=0, moved=0)
        self.seconds = 0

    def broken(self, promise, text):
        self.violations.append((promise, text))

    def as_dict(self):
        return {"jobs": self.counts["ack"], "submitted": self.counts["submit"], "refused": self.counts["refused"],
                "seconds": round(self.seconds, 1), "states": dict(self.states), "faults": dict(self.faults),
                "faults_total": sum(self.faults.values()), "lost": self.lost,
                "published_twice": self.publications_twice, "failed_over": self.failed_over,
                "rewound": dict(self.rewound),
                "recovery_s": quantiles(self.recovery),
                "expiry_delay_s": quantiles(self.expiry),
                "violations": [{"promise": p, "what": w} for p, w in self.violations]}

    def as_text(self):
        d = self.as_dict()
        lines = [f"jobs {d['jobs']}  faults {d['faults_total']}  in {d['seconds']} s",
                 f"lost {d['lost']}  published twice {d['published_twice']}",
                 "ended " + "  ".join(f"{k} {v}" for k, v in sorted(d["states"].items())),
                 "faults " + "  ".join(f"{k} {v}" for k, v in sorted(d["faults"].items())),
                 "recovery of a killed or frozen worker's jobs, s: " + line_of(d["recovery_s"]),
                 "expiry after the deadline, s: " + line_of(d["expiry_delay_s"])]
        if self.failed_over:
            lines.append("failed over: " + line_of(self.failed_over))
        if self.rewound["times"]:
            lines.append("streams of results gone back: " + line_of(self.rewound))
        kinds = collections.Counter(p for p, _ in self.violations)
        lines += [f"BROKEN {p}: {w}" for p, w in self.violations[:40]]
        lines.append("promises kept" if not self.violations else
                     "promises broken: " + ", ".join(f"{k} {v}" for k, v in kinds.items()))
        return "\n".join(lines)


def quantiles(values):
    v = sorted(values)
    if not v:
        return {"n": 0}
    return {"n": len(v), "p50": round(v[len(v) // 2], 3), "p99": round(v[min(len(v) - 1, len(v) * 99 // 100)], 3),
            "max": round(v[-1], 3)}


def line_of(q):
    return "  ".join(f"{k} {v}" for k, v in q.items())


class Away:
    """The times in which the way to Redis was broken, as one sorted list of spans."""

    def __init__(self, records, end):
        spans, since, depth = [], 0, 0
        for r in records:
            if r.get("kind") not in BROKER:
                continue
            if r["e"] == "fault":
                since = since if depth else r["t"]
                depth += 1
            elif r["e"] == "healed":
                depth -= 1
                if depth == 0:
                    spans.append((since, r["t"] + SETTLE_S))
        if depth:
            spans.append((since, end))
        made = list(spans)
        spans += [(r["t"] - OWN_S, r["t"] + SETTLE_S) for r in records
                  if r["e"] == "master" and not any(a <= r["t"] <= b for a, b in made)]
        self.spans = []
        for a, b in sorted(spans):
            if self.spans and a <= self.spans[-1][1]:
                self.spans[-1] = (self.spans[-1][0], max(b, self.spans[-1][1]))
            else:
                self.spans.append((a, b))

    def within(self, a, b):
        return sum(max(0, min(b, y) - max(a, x)) for x, y in self.spans)


def begin_of_failover(by, master):
    """When that began by which this master was chosen."""
    open_ = {r["t"] for r in by["fault"] if r["kind"] in FAILOVER and r["n"] < master["n"]}
    closed = [r["t"] for r in by["back"] if r["n"] < master["n"]]
    return max((t for t in open_ if not any(b >= t for b in closed)), default=master["t"] - OWN_S)


def failovers_of(by, end):
    """When each began, and until when somebody may not have met its master."""
    made = [(f["t"], next((b["t"] for b in by["back"] if b["n"] > f["n"]), end)) for f in by["fault"]
            if f["kind"] in FAILOVER]
    return made + [(begin_of_failover(by, m), m["t"]) for m in by["master"]]


def surviving(report, by, lag):
    """The changes of the surviving history, by job."""
    left, gone = by["change"], []
    for m in by["master"]:
        missing, oldest = set(m["undone"]), begin_of_failover(by, m) - lag
        now_gone = [c for c in left if c["n"] < m["n"] and c["entry"] in missing]
        left = [c for c in left if c["n"] > m["n"] or c["entry"] not in missing]
        gone += now_gone
        for c in now_gone:
            if c["t"] < oldest:
                report.broken("undone", f"{c['job']} {c['state']}, told at {c['t']:.3f} s, is missing on {m['target']} "
                                        f"at {m['t']:.3f} s; only what was told since {oldest:.3f} s may be")
    changes = collections.defaultdict(list)
    for c in left:
        changes[c["job"]].append(c)
    if by["master"]:
        ends = [c for c in gone if c["state"] in TERMINAL]
        report.failed_over = {
            "masters": len(by["master"]), "changes_undone": len(gone), "ends_undone": len(ends),
            "other_end": sum(any(x["state"] in TERMINAL and x["state"] != c["state"] for x in changes[c["job"]])
                             for c in ends)}
    return left, changes


def check_ends(report, acked, changes, finals):
    for rid, a in acked.items():
        job = a["job"]
        ends = [c for c in changes.get(job, ()) if c["state"] in TERMINAL]
        final = finals.get(job)
        if len(ends) > 1:
            report.broken("ended_twice", f"{job} ({rid}): {[c['state'] for c in ends]}")
            report.publications_twice += sum(c["state"] == "SUCCEEDED" for c in ends) > 1
        if not ends or final is None or final["state"] not in TERMINAL:
            report.lost += 1
            report.broken("lost", f"{job} ({rid}): stream {[c['state'] for c in changes.get(job, ())][-3:]}, "
                                  f"final {final and final['state']}")
        elif final["state"] != ends[0]["state"]:
            report.broken("disagrees", f"{job} ({rid}): stream {ends[0]['state']}, final {final['state']}")
        if final:
            report.states[final["state"]] += 1
    # Terminal events of jobs whose submission was never acknowledged count, too.
    known = {a["job"] for a in acked.values()}
    for job, list_ in changes.items():
        if job not in known and sum(c["state"] in TERMINAL for c in list_) > 1:
            report.broken("ended_twice", f"{job}: {[c['state'] for c in list_]}")


def check_failures(report, acked, submits, finals):
    for rid, a in acked.items():
        final = finals.get(a["job"])
        if final and final["state"] == "FAILED" and not submits[rid].get("bad"):
            report.broken("failed", f"{a['job']} ({rid}): {final.get('reason')}: {final.get('message')}")


class Clocks:
    """The times between the jumps of Redis' clock: places in line and deadlines are by that clock, and only what lies
    within one such time can be judged by another."""

    def __init__(self, records):
        self.bounds = [r["t"] for r in records if r.get("kind") == "clock" and r["e"] in ("fault", "healed")]

    def epoch(self, *times):
        """Of all of them, or None."""
        found = {bisect.bisect(self.bounds, t) for t in times}
        n = found.pop()
        return n if not found and n % 2 == 0 else None


def check_order(report, acked, submits, changes, clocks):
    """Per tenant and model, with the jobs by the time of their acknowledgement: whatever was acknowledged before
    a job was asked for must have been begun before it."""
    lines = collections.defaultdict(list)
    for rid, a in acked.items():
        s = submits[rid]
        begun = next((c["n"] for c in changes.get(a["job"], ()) if c["state"] == "RUNNING"), None)
        epoch = clocks.epoch(s["t"], a["t"])
        if begun is not None and epoch is not None:
            lines[s["tenant"], s["model"], s.get("priority", 0), epoch].append((a["t"], s["t"], begun, a["job"]))
    for jobs in lines.values():
        by_ack = sorted(jobs)
        latest, highest = [], -1  # the highest place begun among those acknowledged up to here
        for _, _, begun, job in by_ack:
            highest = max(highest, begun)
            latest.append(highest)
        times = [j[0] for j in by_ack]
        for _, asked, begun, job in jobs:
            before = bisect.bisect_left(times, asked)
            if before and latest[before - 1] > begun:
                report.broken("order", f"{job} overtook a job that was acknowledged before {asked:.3f} s")


def check_recovery(report, faults, changes, away, bound):
    for r in faults:
        for job in r.get("held") or ():
            later = [c for c in changes.get(job, ()) if c["t"] > r["t"]]
            begun = next((c for c in later if c["state"] != "QUEUED"), None)
            if begun is None:
                continue  # check_ends tells
            if begun["state"] == "SUCCEEDED":
                continue  # by the same lease: its publication was under way, or the frozen one woke up in time
            took = begun["t"] - r["t"]
            report.recovery.append(took)
            if took - away.within(r["t"], begun["t"]) > bound:
                report.broken("late", f"{job}: {took:.2f} s after {r['kind']} of {r['target']}, the bound is {bound} s")


def check_deadlines(report, acked, submits, changes, away, clocks, slack):
    for rid, a in acked.items():
        deadline = submits[rid].get("deadline")
        end = next((c for c in changes.get(a["job"], ()) if c["state"] in TERMINAL), None)
        if deadline is None or end is None or end["state"] != "EXPIRED":
            continue
        if clocks.epoch(submits[rid]["t"], end["t"]) is None:
            continue
        late = end["t"] - deadline
        report.expiry.append(late)
        if late - away.within(deadline, end["t"]) > 1.0 + slack:
            report.broken("expired_late", f"{a['job']}: {late:.2f} s after its deadline")


def check(records):
    """records: dicts, one after the other."""
    report = Report()
    by, timeline, last = collections.defaultdict(list), [], None
    for n, fields in enumerate(records):
        last = r = history.Record({**fields, "n": n})
        by[r["e"]].append(r)
        if r["e"] in ("fault", "healed", "master"):
            timeline.append(r)
    if len(by["begin"]) != 1 or len(by["end"]) != 1 or by["begin"][0]["n"] != 0 or last["e"] != "end":
        report.broken("void", "the history does not run from begin to end")
        return report
    begin, report.seconds = by["begin"][0], last["t"]
    submits = {r["rid"]: r for r in reversed(by["submit"])}
    acked = {r["rid"]: r for r in by["ack"]}  # of an item that is told again the last: its first job was not promised
    finals = {r["job"]: r for r in by["final"]}
    left, changes = surviving(report, by, begin.get("lag_s", 0))
    away = Away(timeline, report.seconds)
    for what in ("submit", "refused"):
        report.counts[what] = len({r["rid"] for r in by[what]})
    report.counts["ack"] = len(acked)
    report.faults.update(r["kind"] for r in by["fault"])
    for r in by["gap"]:
        report.broken("void", f"{r.get('entries')} entries of the event stream were not read")
    entries = [c["entry"] for c in left]
    if entries != sorted(entries, key=lambda e: [int(x) for x in e.split("-")]):
        report.broken("void", "the event stream went backwards")
    check_ends(report, acked, changes, finals)
    check_failures(report, acked, submits, finals)
    clocks = Clocks(timeline)
    check_order(report, acked, submits, changes, clocks)
    check_recovery(report, by["fault"], changes, away, begin["lease_s"] + begin["scan_s"] + begin["slack_s"])
    check_deadlines(report, acked, submits, changes, away, clocks, begin["slack_s"])
    checker_batch.check_batches(report, by, checker_batch.Losses(by, failovers_of(by, report.seconds),
                                                                 begin.get("lag_s", 0), OWN_S))
    for r in by["exit"]:
        if r["wanted"] and r["status"] != 0:
            report.broken("drain", f"{r['target']} ended with {r['status']}")
    if begin.get("only_drains"):
        for job, f in finals.items():
            if f["state"] == "SUCCEEDED" and f["attempts"] != 1:
                report.broken("attempt_burnt", f"{job} has {f['attempts']} attempts")
    for r in by["left"]:
        report.broken("left", r["key"])
    return report


def main():
    report = check(history.records(sys.argv[1]))
    print(report.as_text())
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w", encoding="utf-8") as f:
            json.dump(report.as_dict(), f, indent=1)
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
