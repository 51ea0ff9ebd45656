#!/usr/bin/env python3
"""As checker_test.py, of histories with a batch: what its streams told, and what they told again."""
import unittest

from checker_test import Histories, good


class Batches(Histories):
    def batch(self):
        """A good one, with a batch of two items: c, and one that was refused."""
        r = good()
        for i, more in enumerate(({"e": "promised", "next": 3},
                                  {"e": "result", "seq": 1, "place": 1, "state": 3, "refused": False, "job": "C"},
                                  {"e": "result", "seq": 2, "place": 2, "state": 4, "refused": True, "job": ""},
                                  {"e": "batch", "items": 2, "counts": {"succeeded": 1, "failed": 1, "refused": 1,
                                                                        "queued": 0}})):
            r.insert(len(r) - 1, {"t": 21.1 + i / 10, "batch": "b", **more})
        r[self.index(r, job="C", e="final")]["item"] = "b-1"
        self.breaks(r)
        return r

    def test_an_item_that_is_told_twice(self):
        for place in (2, 3):
            r = self.batch()
            r.insert(len(r) - 2, {**r[self.index(r, e="result", seq=2)], "place": place})
            found = self.breaks(r, "batch")
            self.assertIn("told twice: [2]", found.as_text())

    def rewound(self, to, *again, fault="failover_kill", at=19):
        """The stream of the batch has told both ends, goes back, and tells what it finds there then."""
        r = self.batch()
        r[0]["lag_s"] = 5
        new = [{"e": "rewound", "t": 21.35, "batch": "b", "place": to},
               *({**r[self.index(r, e="result", seq=seq)], "t": 21.36, "place": to + 1 + i}
                 for i, seq in enumerate(again))]
        r[len(r) - 2:len(r) - 2] = new
        if fault:
            r.insert(self.index(r, e="exit"), {"e": "fault", "t": at, "kind": fault, "target": "node1"})
        return r

    def test_what_a_rewound_stream_tells_again(self):
        for fault in ("failover_kill", "failover_freeze", "failover_behind", "disk_full"):
            for r in (self.rewound(0, 1, 2, fault=fault), self.rewound(0, 2, 1, fault=fault),
                      self.rewound(1, 2, fault=fault)):
                self.breaks(r)
        found = self.breaks(self.rewound(0, 2, 1)).as_dict()["rewound"]
        self.assertEqual(found, {"times": 1, "told_again": 2, "moved": 2})
        found = self.breaks(self.rewound(0, 1, 2)).as_dict()["rewound"]
        self.assertEqual(found, {"times": 1, "told_again": 2, "moved": 0})

    def test_a_master_that_nobody_killed_rewinds_too(self):
        r = self.rewound(0, 1, 2, fault=None)
        r.insert(self.index(r, e="exit"), {"e": "master", "t": 19, "target": "node2", "undone": []})
        self.breaks(r)

    def test_a_rewound_stream_that_nothing_explains(self):
        for fault in (None, "worker_kill", "redis_kill", "redis_freeze", "door_cut"):
            found = self.breaks(self.rewound(0, 1, 2, fault=fault), "batch")
            self.assertIn("went back", found.as_text())
        r = self.rewound(0, 1, 2, fault="redis_kill")
        r[0]["options"] = {"fsync": "everysec"}
        self.breaks(r)

    def test_a_fail_over_that_was_met_explains_nothing_more(self):
        r = self.rewound(0, 1, 2)
        r.insert(self.index(r, e="exit"), {"e": "back", "t": 19.5, "kind": "failover_kill", "target": "node1"})
        at = len(r) - 2
        again = [{**x, "t": x["t"] + 0.01} for x in r if x["e"] == "rewound" or x.get("t") == 21.36]
        r[at:at] = again
        self.breaks(r)
        for x in (*r[at:at + 3], *r[at + 3:]):
            x["t"] += 100
        for x in r[at - 3:at]:
            x["t"] += 50
        found = self.breaks(r, "batch")
        self.assertEqual(found.as_text().count("went back"), 1)

    def test_a_rewound_stream_that_loses_an_item(self):
        found = self.breaks(self.rewound(0, 2), "batch")
        self.assertIn("never told: [1]", found.as_text())
        found = self.breaks(self.rewound(0, 1), "batch")
        self.assertIn("never told: [2]", found.as_text())

    def test_a_rewound_stream_that_tells_twice(self):
        found = self.breaks(self.rewound(0, 1, 2, 2), "batch")
        self.assertIn("told twice: [2]", found.as_text())
        found = self.breaks(self.rewound(1, 1), "batch")  # 1 lies before the place to which it went back
        self.assertIn("told twice: [1]", found.as_text())

    def test_a_repeat_that_no_rewound_told(self):
        r = self.rewound(0, 1, 2)
        del r[self.index(r, e="rewound")]
        found = self.breaks(r, "batch")
        self.assertIn("told twice: [1, 2]", found.as_text())

    def test_a_stream_that_leaves_out_a_place(self):
        r = self.batch()
        r[self.index(r, e="result", seq=2)]["place"] = 3
        found = self.breaks(r, "batch")
        self.assertIn("place 3", found.as_text())
        r = self.rewound(0, 1, 2)
        r[self.index(r, e="rewound")]["place"] = 3
        self.breaks(r, "batch")

    def test_ends_that_were_told_long_before_keep_their_order(self):
        r = self.rewound(0, 2, 1, at=21)
        self.breaks(r)
        r[0]["lag_s"] = -1  # as if they had been told long before
        found = self.breaks(r, "undone")
        self.assertIn("of batch b", found.as_text())

    def test_an_item_of_which_the_next_master_made_another_job(self):
        """Told by a master before its replicas had the item, which was not promised therefore."""
        r = self.rewound(0, 1, 2)
        for i, x in enumerate(r):
            if x.get("rid") == "c" and x["e"] == "ack":
                r.insert(i, {**x, "job": "LOST"})
                break
        self.breaks(r)

    def test_an_item_that_is_never_told(self):
        r = self.batch()
        del r[self.index(r, e="result", seq=1)]
        found = self.breaks(r, "batch")
        self.assertIn("never told: [1]", found.as_text())

    def test_counts_that_are_not_those_of_the_results(self):
        r = self.batch()
        r[self.index(r, e="batch")]["counts"]["queued"] = 1
        self.breaks(r, "batch")

    def test_a_batch_of_which_items_are_missing(self):
        r = self.batch()
        r[self.index(r, e="batch")]["items"] = 3
        self.breaks(r, "batch")

    def test_an_item_of_which_two_jobs_were_made(self):
        r = self.batch()
        r[self.index(r, job="B", e="final")]["item"] = "b-1"
        self.breaks(r, "item_twice")


if __name__ == "__main__":
    unittest.main()
