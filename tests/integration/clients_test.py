#!/usr/bin/env python3
"""An example of docs/clients against real processes, with and without TLS and a key:

    python3 clients_test.py BIN DESCRIPTORS LANGUAGE FOLDER

It is built below FOLDER from a copy of the sources, without a network: exit status 77 where the
toolchain or its packages are missing (docs/clients/fetch.sh fetches them)."""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import lib_pseg as lib
from lib_pseg import pb

LANGUAGE, FOLDER = sys.argv[3], pathlib.Path(sys.argv[4]).resolve()
HERE = FOLDER / "docs" / "clients" / LANGUAGE
OFFLINE = {"GOPROXY": "off", "GOFLAGS": "-mod=mod", "CARGO_NET_OFFLINE": "true", "npm_config_offline": "true"}
# The tools that must be there, the commands that build, and the command that runs.
RECIPES = {
    "go": (["go", "protoc"], [["./generate.sh"], ["go", "build", "-o", "segment", "."]], [str(HERE / "segment")]),
    "node": (["node", "npm"], [["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]],
             ["node", str(HERE / "segment.js")]),
    "java": (["mvn", "java"], [["mvn", "-o", "-q", "-B", "package"]],
             ["java", "-cp", f"{HERE}/target/*:{HERE}/target/dependency/*", "dev.pseg.example.Segment"]),
    "rust": (["cargo", "protoc"], [["cargo", "build", "--offline", "-q"]], [str(HERE / "target/debug/pseg-example")]),
}


def skip(why):
    print(f"skipped: {why}; sh docs/clients/fetch.sh {LANGUAGE} fetches what is missing")
    sys.exit(77)


def build():
    tools, commands, run = RECIPES[LANGUAGE]
    for tool in tools:
        if not shutil.which(tool):
            skip(f"no {tool}")
    shutil.copytree("proto", FOLDER / "proto", dirs_exist_ok=True)
    shutil.copytree(f"docs/clients/{LANGUAGE}", HERE, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("node_modules", "target", "psegv1", "Cargo.lock", "package-lock.json"))
    for command in commands:
        done = subprocess.run(command, cwd=HERE, env={**os.environ, **OFFLINE}, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        if done.returncode:
            said = done.stdout + done.stderr
            # What the tools say of a package that is not in their cache; anything else is a fault.
            if re.search(r"module lookup disabled|ENOTCACHED|offline|program not found|no matching package|"
                         r"not found or is not executable", said):
                skip(f"{command[0]} lacks packages")
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{said[-3000:]}")
    return run


RUN = build()


class Example(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.stub = cluster.stub(cls.scheduler)
        cls.worker = cluster.worker("scenes")

    def run_it(self, scheduler, prompt, server=None, **env):
        out = self.cluster.folder / "mask.png"
        out.unlink(missing_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}
        done = subprocess.run([*RUN, "docs/example/scene.png", prompt, str(out)], capture_output=True, text=True,
                              env={**clean, "PSEG_SERVER": server or scheduler.target, **env}, timeout=120)
        return done, out

    def succeeds(self, done, out):
        self.assertEqual(done.returncode, 0, done.stderr)
        found = re.fullmatch(r"(jobs/[0-9a-f]{32}) iou=([01]\.\d{4}) area=(\d+)\n", done.stdout)
        self.assertTrue(found, done.stdout)
        return found

    def test_mask(self):
        done, out = self.run_it(self.scheduler, "the small red circle")
        name, iou, area = self.succeeds(done, out).groups()
        job = lib.wait(self.stub, name)
        self.assertEqual((f"{job.results[0].predicted_iou:.4f}", job.results[0].area_px), (iou, int(area)))
        request = pb.FetchMasksRequest(name=name, format=pb.MaskFormat(encoding=pb.MASK_ENCODING_PNG))
        parts = list(self.stub.FetchMasks(request, timeout=lib.CALL_S))
        self.assertEqual(out.read_bytes(), b"".join(p.mask.data for p in parts))

    def test_rich_error(self):
        done, out = self.run_it(self.scheduler, "x" * 5000)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"^error: PROMPT_TOO_LONG job\.prompts\[0\]\.text .*1024")
        self.assertFalse(out.exists())

    def test_failed_job(self):
        done, _ = self.run_it(self.scheduler, "a star")
        self.succeeds(done, _)
        broken = self.cluster.folder / "broken.png"
        broken.write_bytes(lib.SCENE[:300])
        done = subprocess.run([*RUN, str(broken), "a star", "/dev/null"], capture_output=True, text=True, timeout=120,
                              env={**os.environ, "PSEG_SERVER": self.scheduler.target})
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"FAILED")

    def test_server_that_comes_late(self):
        """Calls are tried again while nobody listens."""
        first = self.cluster.scheduler("--default-model", "scenes")
        target = first.target
        first.kill()
        starting = self.cluster.scheduler("--default-model", "scenes", listen=target, wait=False)
        done, out = self.run_it(None, "a star", server=target)
        starting.wait_ready()
        self.succeeds(done, out)

    def test_tls_and_key(self):
        folder = self.cluster.folder
        if not shutil.which("openssl"):
            self.skipTest("no openssl")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"], cwd=folder, check=True,
                       capture_output=True)
        (folder / "ext").write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
        subprocess.run(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                        "/CN=localhost", "-keyout", "tls.key", "-out", "tls.csr"], cwd=folder, check=True,
                       capture_output=True)
        subprocess.run(["openssl", "x509", "-req", "-in", "tls.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                        "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", "tls.pem"], cwd=folder, check=True,
                       capture_output=True)
        (folder / "keys").write_text(f"{hashlib.sha256(b'secret').hexdigest()} team\n")
        scheduler = self.cluster.scheduler("--tls-cert", folder / "tls.pem", "--tls-key", folder / "tls.key", "--keys",
                                           folder / "keys", "--default-model", "scenes")
        server = scheduler.target.replace("127.0.0.1", "localhost")
        env = dict(server=server, PSEG_CA=str(folder / "ca.pem"))
        self.succeeds(*self.run_it(scheduler, "a star", PSEG_KEY="secret", **env))
        done, _ = self.run_it(scheduler, "a star", PSEG_KEY="wrong", **env)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"UNAUTHENTICATED")


if __name__ == "__main__":
    lib.main()
