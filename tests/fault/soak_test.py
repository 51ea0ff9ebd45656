#!/usr/bin/env python3
"""The judge of a soak, by curves that grow and curves that do not."""
import unittest
import xml.dom.minidom

import soak


def curves(n=100, **f):
    return [{"t": i, **{name.replace("_of_", " of "): g(i / n) for name, g in f.items()}} for i in range(n)]


class Judge(unittest.TestCase):
    def test_what_stands_still(self):
        self.assertEqual(soak.judge(curves(memory_of_a=lambda x: 100 << 20, keys_of_redis=lambda x: 5000,
                                           descriptors_of_a=lambda x: 30)), [])

    def test_a_warm_up_is_no_growth(self):
        self.assertEqual(soak.judge(curves(memory_of_a=lambda x: min(x * 4, 1) * (200 << 20),
                                           keys_of_redis=lambda x: min(x * 4, 1) * 9000)), [])

    def test_noise_is_no_growth(self):
        self.assertEqual(soak.judge(curves(memory_of_a=lambda x: (100 << 20) + (int(x * 1000) % 7 << 19),
                                           descriptors_of_a=lambda x: 30 + int(x * 1000) % 5)), [])

    def test_each_kind_of_growth(self):
        for name, slow in (("memory_of_a", lambda x: (100 << 20) * (1 + x / 5)), ("descriptors_of_a", lambda x: 30 + 12 * x),
                           ("threads_of_a", lambda x: 8 + 8 * x), ("keys_of_redis", lambda x: 5000 * (1 + x / 2)),
                           ("redis_memory_of_redis", lambda x: (100 << 20) * (1 + x / 2))):
            found = soak.judge(curves(**{name: slow}, threads_of_b=lambda x: 3))
            self.assertEqual(len(found), 1, (name, found))
            self.assertTrue(found[0].startswith(name.replace("_of_", " of ")), found)

    def test_redis_holds_more_where_jobs_come_faster(self):
        def samples(rate):
            s = curves(keys_of_redis=lambda x: 9000 * (1 if x < 0.5 else 1.5), memory_of_a=lambda x: 100 << 20)
            for i, one in enumerate(s):
                one["jobs"] = sum(rate(k) for k in range(i))
            return s
        self.assertEqual(soak.judge(samples(lambda i: 140 if i < 50 else 210)), [])
        self.assertEqual(len(soak.judge(samples(lambda i: 140))), 1)
        self.assertEqual(len(soak.judge(samples(lambda i: 140 if i < 50 else 150))), 1)
        slower = samples(lambda i: 210 if i < 50 else 140)
        for one in slower:
            one["memory of a"] *= 1 + one["t"] / 100
        self.assertEqual(len(soak.judge(slower)), 2)

    def test_a_curve_that_ends(self):
        s = curves(memory_of_a=lambda x: 1 << 20)
        for one in s[60:]:
            del one["memory of a"]
        self.assertEqual(len(soak.judge(s)), 1)

    def test_too_little(self):
        self.assertEqual(len(soak.judge(curves(10, memory_of_a=lambda x: 1))), 1)

    def test_a_chart_is_xml(self):
        xml.dom.minidom.parseString(soak.chart(curves(memory_of_a=lambda x: x * 1e8, keys_of_redis=lambda x: 0), "t & t"
                                               .replace("&", "and")))


if __name__ == "__main__":
    unittest.main()
