"""/metrics of a process, read with Prometheus' own parser. Exit status 77: that is missing."""
import re
import sys
import urllib.error
import urllib.request

import lib_pseg as lib

try:
    from prometheus_client.parser import text_string_to_metric_families
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)


def get(process, path):
    """Status and text."""
    port = re.search(r"metrics listen=\S+ port=(\d+)", process.log()).group(1)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=lib.CALL_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def families(process):
    status, text = get(process, "/metrics")
    assert status == 200, text
    return {f.name: f for f in text_string_to_metric_families(text)}


def value(process, sample, **labels):
    """A sample's value; None if there is none of these labels."""
    for family in families(process).values():
        for s in family.samples:
            if s.name == sample and all(s.labels.get(k) == v for k, v in labels.items()):
                return s.value
    return None
