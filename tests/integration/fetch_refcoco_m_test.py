#!/usr/bin/env python3
"""deploy/fetch-refcoco-m.sh against a hub of our own on a loopback port: fetches, goes on with a part,
refuses what is damaged, and does not fetch twice.  python3 fetch_test.py ROOT"""
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(sys.argv[1])
if not shutil.which("curl"):
    print("SKIP: no curl")
    sys.exit(77)
FILES = {"data/validation-00000-of-00002.parquet": bytes(range(256)) * 300, "data/validation-00001-of-00002.parquet": b"second" * 999}
asked, listed = [], {}


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append((self.path, self.headers.get("Range")))
        if self.path == "/api/datasets/moondream/refcoco-m/tree/main?recursive=true":
            body = json.dumps([{"type": "directory", "path": "data", "size": 0}, {"type": "file", "path": "README.md", "size": 3}] +
                              [{"type": "file", "path": p, "size": len(b), "lfs": {"oid": listed.get(p) or hashlib.sha256(b).hexdigest()}}
                               for p, b in FILES.items()]).encode()
        else:
            body = FILES.get(self.path.removeprefix("/datasets/moondream/refcoco-m/resolve/main/"))
        if body is None:
            self.send_error(404)
            return
        begin = int(self.headers["Range"].split("=")[1].split("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin:])

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
with tempfile.TemporaryDirectory() as run:
    out = pathlib.Path(run) / "set"

    def fetch():
        asked.clear()
        return subprocess.run(["sh", ROOT / "deploy/fetch-refcoco-m.sh", out], capture_output=True, text=True, timeout=60,
                              env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "", "no_proxy": "*"})

    first, second = (out / pathlib.Path(p).name for p in FILES)
    out.mkdir()
    (out / f"{first.name}.part").write_bytes(FILES["data/" + first.name][:1000])  # cut off before
    r = fetch()
    assert r.returncode == 0, r.stderr
    assert first.read_bytes() == FILES["data/" + first.name] and second.read_bytes() == FILES["data/" + second.name]
    assert any(p.endswith(first.name) and r == "bytes=1000-" for p, r in asked), asked
    assert sorted(os.listdir(out)) == sorted([first.name, second.name]), os.listdir(out)

    r = fetch()  # nothing but the list
    assert r.returncode == 0 and len(asked) == 1, (r.stderr, asked)

    second.unlink()
    listed["data/" + second.name] = "0" * 64
    r = fetch()
    assert r.returncode == 1 and "SHA-256" in r.stderr and not second.exists(), r.stderr
    listed.clear()
    r = fetch()
    assert r.returncode == 0 and second.exists(), r.stderr
    server.shutdown()
    server.server_close()
    second.unlink()
    r = fetch()
    assert r.returncode == 1 and "cannot ask" in r.stderr, r.stderr
print("fetched, went on, refused damage")
