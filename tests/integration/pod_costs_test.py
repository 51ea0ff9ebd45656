#!/usr/bin/env python3
"""deploy/kubernetes/components/pod-costs: which worker Kubernetes is told to stop first. kubectl and curl are the
real ones, so is one worker; the API server and the other workers are played here."""
import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse

import lib_pseg as lib

SCRIPT = "deploy/kubernetes/components/pod-costs/pod-costs.sh"
ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
PODS = "/api/v1/namespaces/pseg/pods"
for tool in ("kubectl", "curl"):
    if not shutil.which(tool):
        print(f"skipped: no {tool}")
        sys.exit(77)


def serve(address, handler, port=0):
    server = http.server.ThreadingHTTPServer((address, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, body, status=200, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Api:
    """As much of Kubernetes' API as kubectl needs for pods. Patches change what is listed."""

    def __init__(self):
        self.pods, self.patches, self.asked, self.refuses = {}, [], [], False
        api = self

        class Handler(Quiet):
            def do_GET(self):
                url = urllib.parse.urlparse(self.path)
                found = api.get(url.path, dict(urllib.parse.parse_qsl(url.query)))
                status = 200 if found else 404
                self.answer(json.dumps(found or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                                                 "reason": "NotFound", "message": "no " + url.path}).encode(), status)

            def do_PATCH(self):
                name = urllib.parse.urlparse(self.path).path.removeprefix(PODS + "/")
                change = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if api.refuses:
                    self.answer(json.dumps({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                                            "reason": "Forbidden", "message": "may not patch"}).encode(), 403)
                    return
                assert set(change) <= {"metadata", "kind", "apiVersion"}, change
                cost = change["metadata"]["annotations"][ANNOTATION]
                api.patches.append((name, cost))
                api.pods[name]["metadata"]["annotations"][ANNOTATION] = cost
                self.answer(json.dumps(api.pods[name]).encode())
        self.server = serve("127.0.0.1", Handler)

    def add(self, name, ip, cost=None):
        self.pods[name] = {"kind": "Pod", "apiVersion": "v1", "status": {"phase": "Running", "podIP": ip}, "metadata": {
            "name": name, "namespace": "pseg", "annotations": {} if cost is None else {ANNOTATION: cost}}}

    def get(self, path, query):
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
        if path == "/api/v1":
            return {"kind": "APIResourceList", "groupVersion": "v1", "resources": [
                {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "shortNames": ["po"],
                 "verbs": ["get", "list", "patch"]}]}
        if path == PODS:
            self.asked.append(query)
            return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(self.pods.values())}
        return self.pods.get(path.removeprefix(PODS + "/"))


def worker_at(address, port, held, age):
    """Its metrics, as the real one writes them."""
    class Handler(Quiet):
        def do_GET(self):
            text = f"# TYPE pseg_worker_jobs_held gauge\npseg_worker_jobs_held {held}\n" \
                   f"# TYPE pseg_worker_oldest_job_seconds gauge\npseg_worker_oldest_job_seconds {age}\n"
            self.answer(text.encode() if self.path == "/metrics" and held is not None else b"", kind="text/plain")
    return serve(address, Handler, port)


class PodCosts(lib.Test):
    @classmethod
    def setup(cls, cluster):
        # A port that is free on every loopback address used here.
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            cls.port = s.getsockname()[1]

    def setUp(self):
        self.api = Api()
        self.addCleanup(self.api.server.server_close)
        self.addCleanup(self.api.server.shutdown)
        config = self.cluster.folder / f"kubeconfig{self.id()}"
        config.write_text(json.dumps({
            "kind": "Config", "apiVersion": "v1", "current-context": "x", "users": [],
            "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{self.api.server.server_port}"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "namespace": "pseg"}}]}))
        self.env = {**{k: v for k, v in os.environ.items() if "proxy" not in k.lower()}, "KUBECONFIG": str(config),
                    "HOME": str(self.cluster.folder), "PSEG_METRICS_PORT": str(self.port)}

    def play(self, n, held, age, cost=None):
        """A pod whose worker says that, at an address of its own."""
        address = f"127.0.0.{n}"
        server = worker_at(address, self.port, held, age)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.api.add(f"pseg-worker-{n}", address, cost)

    def look(self, status=0):
        done = subprocess.run(["sh", SCRIPT, "--once"], env=self.env, capture_output=True, text=True, timeout=lib.START_S)
        self.assertEqual(done.returncode, status, done.stderr)
        made, self.api.patches = {name.removeprefix("pseg-worker-"): cost for name, cost in self.api.patches}, []
        return made

    def test_idle_ones_go_first(self):
        ages = {10: (0, 0), 11: (1, 0.25), 12: (5, 14.9), 13: (1, 15), 14: (1, 61.5), 15: (2, 300), 16: (1, 1e5)}
        for n, (held, age) in ages.items():
            self.play(n, held, age)
        self.assertEqual(self.look(), {"11": "10", "12": "10", "13": "20", "14": "30", "15": "40", "16": "50"},
                         "0 is what a pod without the annotation has")
        self.assertEqual(self.api.asked[-1]["labelSelector"], "app.kubernetes.io/name=pseg-worker")
        self.assertEqual(self.api.asked[-1]["fieldSelector"], "status.phase=Running")
        self.assertEqual(self.look(), {}, "nothing has changed, nothing is patched")

    def test_what_was_busy_is_idle(self):
        self.play(20, 0, 0, cost="30")
        self.play(21, 1, 0.5, cost="10")
        self.assertEqual(self.look(), {"20": "0"})

    def test_a_worker_that_does_not_answer_keeps_its_cost(self):
        self.api.add("pseg-worker-30", "127.0.0.30", "40")  # nobody listens there
        self.play(31, None, 0, cost="40")                   # something else does
        self.api.add("pseg-worker-32", "")                  # a pod without an address yet
        self.play(33, 1, 20)
        self.assertEqual(self.look(), {"33": "20"})

    def test_no_pods_and_no_rights(self):
        self.assertEqual(self.look(), {})
        self.play(40, 1, 20)
        self.api.refuses = True
        self.assertEqual(self.look(status=1), {})
        self.api.server.shutdown()
        self.api.server.server_close()
        self.look(status=1)

    def test_a_real_worker(self):
        self.cluster.worker("empty", "--metrics-listen", f"127.0.0.50:{self.port}")
        self.api.add("pseg-worker-50", "127.0.0.50", "20")
        self.assertEqual(self.look(), {"50": "0"})

    def test_it_goes_on_and_stops(self):
        self.play(60, 1, 20)
        running = subprocess.Popen(["sh", SCRIPT], env={**self.env, "PSEG_EVERY_S": "3600"}, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)

        def end():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        self.addCleanup(end)
        lib.until("a patch", lambda: self.api.patches == [("pseg-worker-60", "20")])
        running.send_signal(signal.SIGTERM)
        self.assertEqual(running.wait(lib.CALL_S), 0, "not after the hour that it sleeps")


if __name__ == "__main__":
    lib.main()
