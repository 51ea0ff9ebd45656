#!/usr/bin/env python3
"""The checker against histories made by hand: a good one passes, and each one that is doctored fails by the
promise that it breaks and by no other. A checker that cannot fail proves nothing."""
import copy
import unittest

import checker
import history

BOUND = {"lease_s": 10, "scan_s": 2, "slack_s": 3}


def good():
    """Two jobs of one tenant and one of another; the worker of the first is killed."""
    r = [{"e": "begin", "t": 0, "seed": 1, **BOUND}]

    def add(e, t, **kw):
        r.append({"e": e, "t": t, **kw})

    def change(t, job, state, n):
        add("change", t, job=job, state=state, entry=f"1-{n}")
    for rid, tenant, t in (("a", "x", 1), ("b", "x", 2), ("c", "y", 2.5)):
        add("submit", t, rid=rid, tenant=tenant, model="m")
        add("ack", t + 0.1, rid=rid, job=rid.upper())
    change(3, "A", "RUNNING", 1)
    change(3, "B", "RUNNING", 2)
    add("fault", 4, kind="worker_kill", target="w1", held=["A"])
    change(5, "B", "SUCCEEDED", 3)
    change(5.5, "C", "RUNNING", 4)
    change(5.6, "C", "SUCCEEDED", 5)
    add("healed", 6, kind="worker_kill", target="w1")
    change(15, "A", "QUEUED", 6)
    change(15.5, "A", "RUNNING", 7)
    change(16, "A", "SUCCEEDED", 8)
    add("exit", 20, target="w2", status=0, wanted=True)
    for job, tenant, attempts in (("A", "x", 2), ("B", "x", 1), ("C", "y", 1)):
        add("final", 21, job=job, state="SUCCEEDED", attempts=attempts, tenant=tenant)
    add("end", 22)
    return r


class Histories(unittest.TestCase):
    def breaks(self, records, *promises):
        found = checker.check(copy.deepcopy(records))
        self.assertEqual(sorted({p for p, _ in found.violations}), sorted(promises), found.as_text())
        return found

    def index(self, records, **kw):
        return next(i for i, r in enumerate(records) if all(r.get(k) == v for k, v in kw.items()))


class Doctored(Histories):
    def test_a_good_one(self):
        report = self.breaks(good())
        self.assertEqual(report.as_dict()["recovery_s"], {"n": 1, "p50": 11.5, "p99": 11.5, "max": 11.5})
        self.assertIn("promises kept", report.as_text())

    def test_a_job_without_an_end(self):
        r = good()
        del r[self.index(r, job="C", state="SUCCEEDED", e="change")]
        r[self.index(r, job="C", e="final")]["state"] = "QUEUED"
        self.assertEqual(self.breaks(r, "lost").lost, 1)

    def test_a_job_that_nobody_knows_any_more(self):
        r = good()
        del r[self.index(r, job="B", e="final")]
        self.assertEqual(self.breaks(r, "lost").lost, 1)

    def test_an_end_that_no_event_told(self):
        r = good()
        del r[self.index(r, job="C", state="SUCCEEDED", e="change")]
        self.breaks(r, "lost")

    def test_a_result_published_twice(self):
        r = good()
        at = self.index(r, job="B", state="SUCCEEDED", e="change")
        r.insert(at + 1, {**r[at], "entry": "1-3"})
        self.assertEqual(self.breaks(r, "ended_twice").publications_twice, 1)

    def test_two_different_ends(self):
        r = good()
        at = self.index(r, job="B", state="SUCCEEDED", e="change")
        r.insert(at + 1, {**r[at], "state": "CANCELLED", "entry": "1-3"})
        self.breaks(r, "ended_twice")

    def test_two_ends_of_a_job_without_an_answer(self):
        r = good()
        at = self.index(r, e="end")
        for n in (8, 9):
            r.insert(at, {"e": "change", "t": 21, "job": "Z", "state": "SUCCEEDED", "entry": "1-9"})
        self.breaks(r, "ended_twice")

    def test_a_reading_that_disagrees(self):
        r = good()
        r[self.index(r, job="B", e="final")]["state"] = "CANCELLED"
        self.breaks(r, "disagrees")

    def test_an_overtaking(self):
        r = good()
        i, j = self.index(r, job="A", state="RUNNING"), self.index(r, job="B", state="RUNNING")
        r[i]["job"], r[j]["job"] = "B", "A"
        self.breaks(r, "order")

    def test_priorities_are_lines_of_their_own(self):
        r = good()
        i, j = self.index(r, job="A", state="RUNNING"), self.index(r, job="B", state="RUNNING")
        r[i]["job"], r[j]["job"] = "B", "A"
        r[self.index(r, rid="B".lower(), e="submit")]["priority"] = 1
        self.breaks(r)

    def test_jobs_asked_for_at_once_have_no_order(self):
        r = good()
        i, j = self.index(r, job="A", state="RUNNING"), self.index(r, job="B", state="RUNNING")
        r[i]["job"], r[j]["job"] = "B", "A"
        r[self.index(r, rid="b", e="submit")]["t"] = 1.05
        self.breaks(r)

    def jump(self, r, begin, end):
        for e, t in (("fault", begin), ("healed", end)):
            r.insert(len(r) - 1, {"e": e, "t": t, "kind": "clock", "target": "redis"})
        return r

    def test_an_overtaking_across_a_jump_of_the_clock(self):
        def overtaken():
            r = good()
            i, j = self.index(r, job="A", state="RUNNING"), self.index(r, job="B", state="RUNNING")
            r[i]["job"], r[j]["job"] = "B", "A"
            return r
        self.breaks(self.jump(overtaken(), 1.5, 1.7))  # A was acknowledged at 1.1, B asked for at 2
        self.breaks(self.jump(overtaken(), 1.5, 3))
        self.breaks(self.jump(overtaken(), 1.05, 1.7))
        self.breaks(self.jump(overtaken(), 0.5, 0.7), "order")
        self.breaks(self.jump(overtaken(), 2.5, 2.7), "order")

    def test_a_late_expiry_across_a_jump_of_the_clock(self):
        r = good()
        r[self.index(r, rid="c", e="submit")]["deadline"] = 1
        for i in (self.index(r, job="C", state="SUCCEEDED", e="change"), self.index(r, job="C", e="final")):
            r[i]["state"] = "EXPIRED"
        self.breaks(self.jump(copy.deepcopy(r), 3, 3.2))
        self.breaks(self.jump(copy.deepcopy(r), 10, 10.2), "expired_late")

    def late(self, record=None):
        r = good()
        for state, t in (("QUEUED", 20), ("RUNNING", 20.1), ("SUCCEEDED", 20.2)):
            r[max(i for i, x in enumerate(r) if x.get("job") == "A" and x.get("state") == state
                  and x["e"] == "change")]["t"] = t
        if record:
            for one in record:
                r.insert(len(r) - 1, one)
        return r

    def test_a_late_recovery(self):
        self.breaks(self.late(), "late")

    def test_a_recovery_that_redis_held_up(self):
        self.breaks(self.late([{"e": "fault", "t": 8, "kind": "redis_kill", "target": "redis"},
                               {"e": "healed", "t": 9, "kind": "redis_kill", "target": "redis"}]))

    def test_a_scheduler_holds_nothing_up(self):
        self.breaks(self.late([{"e": "fault", "t": 8, "kind": "scheduler_kill", "target": "s"},
                               {"e": "healed", "t": 12, "kind": "scheduler_kill", "target": "s"}]), "late")

    def test_a_way_to_a_scheduler_holds_nothing_up(self):
        for kind in ("door_cut", "door_hold", "door_slow"):
            self.breaks(self.late([{"e": "fault", "t": 8, "kind": kind, "target": "door of s"},
                                   {"e": "healed", "t": 12, "kind": kind, "target": "door of s"}]), "late")

    def test_a_late_expiry(self):
        r = good()
        r[self.index(r, rid="c", e="submit")]["deadline"] = 3
        for i in (self.index(r, job="C", state="SUCCEEDED", e="change"), self.index(r, job="C", e="final")):
            r[i]["state"] = "EXPIRED"
        self.breaks(r)
        r[self.index(r, rid="c", e="submit")]["deadline"] = 1
        self.breaks(r, "expired_late")

    def test_a_failure_that_nobody_ordered(self):
        r = good()
        for i in (self.index(r, job="C", state="SUCCEEDED", e="change"), self.index(r, job="C", e="final")):
            r[i]["state"] = "FAILED"
        self.breaks(r, "failed")
        r[self.index(r, rid="c", e="submit")]["bad"] = True
        self.breaks(r)

    def test_a_drain_that_fails(self):
        r = good()
        r[self.index(r, e="exit")]["status"] = -9
        self.breaks(r, "drain")
        r[self.index(r, e="exit")]["wanted"] = False
        self.breaks(r)

    def test_a_burnt_attempt(self):
        r = good()
        r[0]["only_drains"] = True
        self.breaks(r, "attempt_burnt")

    def test_a_key_that_stays(self):
        r = good()
        r.insert(len(r) - 1, {"e": "left", "t": 22, "key": "pseg:{q}:job:1"})
        self.breaks(r, "left")

    def failed_over(self, master=18.5, **more):
        """A good one, in which A ended at 16 and that was undone: a master died at 17, and another was read."""
        r = good()
        r[0]["lag_s"] = 5
        at = self.index(r, e="exit")
        r[at:at] = [{"e": "fault", "t": 17, "kind": "failover_kill", "target": "node1"},
                    {"e": "healed", "t": 18, "kind": "failover_kill", "target": "node1"},
                    {"e": "master", "t": master, "target": "node2", "undone": ["1-8"]},
                    {"e": "change", "t": 18.6, "job": "A", "state": "QUEUED", "entry": "2-1"},
                    {"e": "change", "t": 18.7, "job": "A", "state": "RUNNING", "entry": "2-2"},
                    {"e": "change", "t": 18.8, "job": "A", "state": "SUCCEEDED", "entry": "2-3"},
                    {"e": "back", "t": 19, "kind": "failover_kill", "target": "node1"}]
        return r

    def test_an_end_that_a_dying_master_told(self):
        found = self.breaks(self.failed_over()).as_dict()
        self.assertEqual(found["failed_over"], {"masters": 1, "changes_undone": 1, "ends_undone": 1, "other_end": 0})
        self.assertEqual((found["lost"], found["published_twice"]), (0, 0))

    def test_the_same_end_without_a_fail_over(self):
        r = self.failed_over()
        del r[self.index(r, e="master")]
        self.assertEqual(self.breaks(r, "ended_twice").publications_twice, 1)

    def test_another_end_than_was_told_first(self):
        r = self.failed_over()
        r[self.index(r, entry="2-3")]["state"] = "EXPIRED"
        self.breaks(r, "disagrees")
        r[self.index(r, job="A", e="final")]["state"] = "EXPIRED"
        self.assertEqual(self.breaks(r).failed_over["other_end"], 1)

    def test_an_undone_end_that_never_comes_again(self):
        r = self.failed_over()
        del r[self.index(r, entry="2-3")]
        self.assertEqual(self.breaks(r, "lost").lost, 1)

    def test_two_ends_on_the_master_that_survived(self):
        r = self.failed_over()
        at = self.index(r, entry="2-3")
        r.insert(at + 1, {**r[at], "entry": "2-4"})
        self.breaks(r, "ended_twice")

    def test_what_was_told_long_before_may_not_be_undone(self):
        r = self.failed_over()
        r[self.index(r, e="master")]["undone"] = ["1-5", "1-6", "1-7", "1-8"]
        r[self.index(r, entry="2-3")]["entry"] = "2-4"
        r.insert(self.index(r, entry="2-4"), {"e": "change", "t": 18.75, "job": "C", "state": "SUCCEEDED", "entry": "2-3"})
        found = self.breaks(r, "undone")
        self.assertEqual([w.split(" ")[0] for _, w in found.violations], ["C"], "told at 5.6 s; those of A within 5 s of 17")

    def test_a_fail_over_that_nobody_made(self):
        r = self.failed_over()
        r = [x for x in r if not x.get("kind", "").startswith("failover")]
        self.breaks(r)
        r[0]["lag_s"] = 0
        r[self.index(r, entry="1-8")]["t"] = 8.4
        self.breaks(r, "undone")

    def test_a_fail_over_that_is_over_explains_nothing(self):
        r = self.failed_over(master=40)
        r[self.index(r, e="back")]["t"] = 18.2
        r.insert(self.index(r, e="healed", target="node1") + 1, r.pop(self.index(r, e="back")))
        self.breaks(r, "undone")

    def test_an_entry_may_tell_of_items_of_a_pack(self):
        pack, alone = "01a223d03e2bc624c76abfd120e8b0", "01a223d03e5803950146c50b0022bc00"
        told = history.told_in(["tenant", "t", "id", pack + "09+03", "worker", "w", "state", "RUNNING", "batch", "b",
                                "id", alone, "state", "SUCCEEDED"])
        self.assertEqual(told, [{"job": pack + i, "worker": "w", "state": "RUNNING"} for i in ("09", "0a", "0b")] +
                         [{"job": alone, "state": "SUCCEEDED"}])

    def test_what_two_masters_have_in_common(self):
        told = [("1-1", ["id", "A"]), ("1-2", ["id", "B"]), ("1-3", ["id", "C"])]
        for stream, n in ((told, 3), ([*told, ("2-1", [])], 3), (told[:2], 2), ([*told[:2], ("2-1", [])], 2), ([], 0),
                          ([told[0], ("1-2", ["id", "C"]), told[2]], 1)):
            self.assertEqual(history.common(told, stream), n, stream)

    def test_a_recovery_that_a_fail_over_held_up(self):
        span = [{"e": "fault", "t": 8, "kind": "failover_freeze", "target": "node1"},
                {"e": "healed", "t": 9, "kind": "failover_freeze", "target": "node1"}]
        self.breaks(self.late(span))
        self.breaks(self.late([{**x, "kind": "worker_freeze"} for x in span]), "late")
        self.breaks(self.late([{"e": "master", "t": 9, "target": "node2", "undone": []}]))

    def test_a_history_that_is_not_whole(self):
        self.breaks(good()[:-1], "void")
        self.breaks(good()[1:], "void")
        r = good()
        r.insert(3, {"e": "gap", "t": 1, "entries": 7})
        self.breaks(r, "void")
        r = good()
        i, j = self.index(r, job="A", state="RUNNING"), self.index(r, job="B", state="RUNNING")
        r[i]["entry"], r[j]["entry"] = r[j]["entry"], r[i]["entry"]
        self.breaks(r, "void")


if __name__ == "__main__":
    unittest.main()
