#!/usr/bin/env python3
"""Writes users.acl to standard output: what schedulers and workers may do in Redis, and no more.

    python3 deploy/redis/users.py >deploy/redis/users.acl           (in the source's root)
    python3 deploy/redis/users.py --queue NAME                      (for another queue than "default")
    python3 deploy/redis/users.py --parts N                         (for a queue in N parts, on any of its servers)

Commands come from the queue's Lua, keys and who calls which function from proto/KEYS.md. Redis holds each
command that a function makes against the rights of its caller, so a user needs both the function and what it
does. The test redis_users compares the file with this, and runs the service through it."""
import argparse
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a worker may do to an image and to a request's id: read it, and take it away when its time has passed.
READ_AND_FREE = {"image": "get strlen unlink", "request": "get unlink"}


def lua():
    return "".join(p.read_text() for p in sorted((ROOT / "common/queue/lua").glob("*.lua")))


def commands():
    """Of all functions: the sweep, which both roles call, makes most of them."""
    text = lua()
    found = re.findall(r"redis\.p?call\('([A-Z]+)'", text) + re.findall(r"later_remove\(\w+, '([A-Z]+)'", text)
    return sorted({c.lower() for c in found})


def functions(role):
    """From the table of KEYS.md, held against those that are registered."""
    registered = set(re.findall(r"'(pseg1_\w+)'", lua()))
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (schedulers|workers|both) \|$", (ROOT / "proto/KEYS.md").read_text(), re.M)
    told = {f"pseg1_{n}": who for names, who in rows for n in re.findall(r"`(\w+)`", names)}
    assert set(told) == registered, f"KEYS.md and the functions differ: {set(told) ^ registered}"
    return sorted(n for n, who in told.items() if who in (role, "both") and n != "pseg1_revision")


def keys():
    """job:*, live, ..."""
    told = re.findall(r"^\| `([a-z_]+(?::[A-Z0-9:]+)?)` \| (?:hash|string|sorted set|list|stream)",
                      (ROOT / "proto/KEYS.md").read_text(), re.M)
    return sorted(re.sub(r":.*", ":*", k) for k in told)


def line(user, *rules):
    return " ".join(["user", user, "on", "resetpass", "resetkeys", "resetchannels", "-@all", *rules])


def users(queue, parts=1):
    prefixes = [f"pseg:{{{queue}{f'.{i}' if i else ''}}}:" for i in range(parts)]
    connect = ["+auth", "+ping", "+select", "+role", "+fcall_ro|pseg1_revision"]
    inside = [f"+{c}" for c in commands()]
    call = {role: [f"+fcall|{f}" for f in functions(role)] for role in ("schedulers", "workers")}
    # The queue's prefix is the key that each function names.
    shared = [f"~{p}{k}" for p in prefixes for k in ["", *keys()] if k.split(":")[0] not in READ_AND_FREE]
    own = [f"~{p}{k}:*" for p in prefixes for k in READ_AND_FREE]
    free = [f"({' '.join('+' + c for c in cs.split())} {' '.join(f'~{p}{k}:*' for p in prefixes)})"
            for k, cs in READ_AND_FREE.items()]
    ready = [f"~{p}ready:*" for p in prefixes]
    return [
        line("pseg-scheduler", *connect, *call["schedulers"], *inside, "+function|load", "+xread", "+xrevrange", "+wait",
             "+config|get", "+info", *shared, *own),
        line("pseg-worker", *connect, *call["workers"], *inside, "+xread", "+xrevrange", *shared, *free),
        line("pseg-monitor", "+auth", "+ping", "+info", "+llen", *(f"%R{k}" for k in ready)),
        # KEDA's list scaler asks for type and length by a script of its own; a script's keys count as written to.
        line("pseg-autoscaler", "+auth", "+ping", "+eval", "+type", "+llen", *ready),
    ]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--queue", default="default")
    arguments.add_argument("--parts", type=int, default=1)
    chosen = arguments.parse_args()
    print("\n".join(users(chosen.queue, chosen.parts)))


if __name__ == "__main__":
    main()
