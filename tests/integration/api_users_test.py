#!/usr/bin/env python3
"""The Redis users of deploy/redis: the file is what the code needs, the whole service works with it, and
Redis refuses what a user does not need. Redis itself keeps a list of what it refused (ACL LOG)."""
import hashlib
import pathlib
import socket
import subprocess
import sys
import time

import lib_pseg as lib
from lib_pseg import pb

sys.path.insert(0, "deploy/redis")
sys.dont_write_bytecode = True
import users  # noqa: E402

PASSWORDS = {"scheduler": "s3cret-s", "worker": "s3cret-w", "monitor": "s3cret-m", "autoscaler": "s3cret-a"}


class UsersCluster(lib.Cluster):
    def start_redis(self):
        config = self.folder / "redis.conf"
        config.write_text(f"dir {self.folder}\nappendonly yes\nappendfsync always\nsave \"\"\nmaxmemory 1gb\n"
                          f"maxmemory-policy noeviction\nunixsocket {self.socket}\n")
        env = {f"PSEG_{n.upper()}_PASSWORD": p for n, p in PASSWORDS.items()}
        for _ in range(3):  # somebody may take the port between its choice and its use
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.port = s.getsockname()[1]
            self.redis = self._start("redis", ["sh", "deploy/redis/start.sh", "deploy/redis/users.acl", config,
                                               "--port", self.port], env={**env, "REDIS_PASSWORD": "root"})
            lib.until("redis", lambda: self.redis_cli("ping") == "PONG" or self.redis.child.poll() is not None)
            if self.redis.child.poll() is None:
                return
        raise AssertionError(self.redis.log())

    def redis_cli(self, *args):
        return self.ask("default", "root", *args)

    def ask(self, user, password, *args):
        done = subprocess.run(["redis-cli", "-p", str(self.port), "--no-auth-warning", "--user", user, "--pass",
                               password, *map(str, args)], capture_output=True, text=True)
        return (done.stdout + done.stderr).strip()

    def program(self, name, *args):
        self.count += 1
        ready = self.folder / f"{name}{self.count}.ready"
        url = f"redis://pseg-{name}:{PASSWORDS[name]}@127.0.0.1:{self.port}"
        return self._start(f"{name}{self.count}", [lib.BIN / f"pseg-{name}", "--redis", url, "--lease-ms", "2s",
                                                   "--ready-file", ready, *args], ready=ready)


class Users(lib.Test):
    @classmethod
    def setUpClass(cls):
        cls.cluster = UsersCluster()
        cls.addClassCleanup(lambda: cls.cluster.close())
        cls.cluster.__enter__()
        # A worker may not bring the functions: it waits for a scheduler that does.
        cls.worker = cls.cluster.program("worker", "--model", "empty")
        lib.until("the worker being refused", lambda: "cannot load the queue's functions" in cls.worker.log())
        cls.scheduler = cls.cluster.program("scheduler", "--listen", "127.0.0.1:0", "--default-model", "empty",
                                            "--durability", "fsync", "--metrics-listen", "127.0.0.1:0")
        cls.scheduler.target = cls.scheduler.wait_ready()
        cls.stub = cls.cluster.stub(cls.scheduler)
        cls.worker.wait_ready()

    def refused(self, user, *command):
        said = self.cluster.ask(f"pseg-{user}", PASSWORDS[user], *command)
        self.assertIn("NOPERM", said, command)

    def may(self, user, *command):
        said = self.cluster.ask(f"pseg-{user}", PASSWORDS[user], *command)
        self.assertNotIn("NOPERM", said)
        return said

    def test_the_file_is_what_the_code_needs(self):
        self.assertEqual(pathlib.Path("deploy/redis/users.acl").read_text().splitlines(), users.users("default"),
                         "python3 deploy/redis/users.py >deploy/redis/users.acl")
        found = subprocess.run([sys.executable, "deploy/redis/users.py", "--queue", "other"], capture_output=True,
                               text=True, check=True).stdout
        self.assertIn("~pseg:{other}:live", found)
        found = subprocess.run([sys.executable, "deploy/redis/users.py", "--parts", "2"], capture_output=True,
                               text=True, check=True).stdout
        # What a user may do in a queue, it may do in each part of it, and in no other.
        for one, two in zip(users.users("default"), found.splitlines(), strict=True):
            first = [w.strip("()") for w in two.split() if "{default}" in w]
            second = [w.strip("()") for w in two.split() if "{default.1}" in w]
            self.assertEqual(sorted(w.strip("()") for w in one.split() if "{default}" in w), sorted(first))
            self.assertEqual(sorted(w.replace("{default}", "{default.1}") for w in first), sorted(second))

    def test_the_service(self):
        """Every way of a job, and what Redis refused meanwhile: nothing."""
        self.cluster.redis_cli("ACL", "LOG", "RESET")
        data = lib.png(300, 200)
        digest = hashlib.sha256(data).hexdigest()
        self.stub.UploadImage(iter([pb.UploadImageRequest(header=pb.UploadHeader(sha256=digest, size_bytes=len(data))),
                                    pb.UploadImageRequest(chunk=data)]), timeout=lib.CALL_S)
        self.stub.BatchCheckImages(pb.BatchCheckImagesRequest(sha256=[digest]), timeout=lib.CALL_S)
        for i in range(3):
            job = lib.create(self.stub, image=digest, request_id=f"r{i}")
            self.assertEqual(lib.wait(self.stub, job.name).state, pb.STATE_SUCCEEDED)
        list(self.stub.FetchMasks(pb.FetchMasksRequest(name=job.name), timeout=lib.CALL_S))
        self.stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S)
        self.assertEqual(len(self.stub.ListJobs(pb.ListJobsRequest(), timeout=lib.CALL_S).jobs), 3)
        # A lost lease, attempts that run out, quarantine: by hand, as a worker that claims and dies.
        self.assertEqual(self.worker.stop(), 0)
        broken = lib.create(self.stub)
        for fence, wanted in ((1, "QUEUED"), (2, "FAILED")):
            lib.until("a claim", lambda: broken.name[5:] in self.may(
                "worker", "FCALL", "pseg1_claim", 1, "pseg:{default}:", "hand", "empty", 1, 60000, 3))
            self.assertEqual(self.may("worker", "FCALL", "pseg1_fail", 1, "pseg:{default}:", "hand", broken.name[5:],
                                      fence, "DEVICE_FAILED", "x", int(fence == 1), 1, 3), wanted)
        lost = lib.create(self.stub)
        for attempt in range(4):
            lib.until("a claim", lambda: lost.name[5:] in self.may("worker", "FCALL", "pseg1_claim", 1, "pseg:{default}:",
                                                                     "hand", "empty", 1, 100, 3))
            if attempt == 0:
                self.assertIn("QUEUED", self.may("worker", "FCALL", "pseg1_release", 1, "pseg:{default}:", "hand",
                                                 lost.name[5:], 1))
        self.assertEqual(lib.wait(self.stub, lost.name).state, pb.STATE_FAILED)
        self.stub.CancelJob(pb.CancelJobRequest(name=lib.create(self.stub).name), timeout=lib.CALL_S)
        late = lib.create(self.stub, deadline={"seconds": int(time.time()) + 2})
        self.assertEqual(lib.wait(self.stub, late.name).state, pb.STATE_EXPIRED)
        self.assertIn(lost.name[5:], self.may("scheduler", "FCALL", "pseg1_cases", 1, "pseg:{default}:", "", 10))
        self.assertEqual(self.cluster.redis_cli("ACL", "LOG"), "")
        self.__class__.worker = self.cluster.program("worker", "--model", "empty")
        self.worker.wait_ready()

    def test_what_the_settings_of_durability_ask(self):
        self.assertIn("appendfsync", self.may("scheduler", "CONFIG", "GET", "append*"))
        self.assertIn("connected_slaves", self.may("scheduler", "INFO", "replication"))
        self.assertEqual(self.may("scheduler", "WAIT", 0, 1), "0")

    def test_nobody_may(self):
        key = "pseg:{default}:job:x"
        for user in PASSWORDS:
            for command in (("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "SET", "dir", "/"),
                            ("SHUTDOWN",), ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH"), ("FUNCTION", "DELETE", "pseg1"), ("FUNCTION", "DUMP"),
                            ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("REPLICAOF", "h", 1), ("MODULE", "LIST"),
                            ("SAVE",), ("BGREWRITEAOF",), ("CLIENT", "KILL", "TYPE", "normal"), ("MONITOR",),
                            ("PUBLISH", "x", "y"), ("SWAPDB", 0, 1), ("MIGRATE", "h", 1, key, 0, 1), ("DUMP", key),
                            ("EVALSHA", "0" * 40, 0), ("RENAME", key, key), ("HGETALL", key), ("GETSET", key, 1),
                            ("RESTORE", key, 0, "x")):
                if user in ("monitor", "autoscaler") or command[0].lower() not in users.commands():
                    self.refused(user, *command)

    def test_nobody_leaves_his_queue(self):
        for user in ("scheduler", "worker"):
            for key in ("other", "pseg:{other}:live", "pseg:{default}", "pseg:{default}:new", "pseg:{other}:job:x"):
                self.refused(user, "ZADD", key, 1, "x")
                self.refused(user, "FCALL", "pseg1_sweep", 1, key, 3, 1)
        self.refused("monitor", "LLEN", "pseg:{default}:line:x")
        self.refused("monitor", "RPUSH", "pseg:{default}:ready:empty", "x")
        self.assertEqual(self.may("monitor", "LLEN", "pseg:{default}:ready:scenes"), "0")

    def test_what_an_autoscaler_asks(self):
        script = "local t = redis.call('type', KEYS[1]).ok; return {t, redis.call('llen', KEYS[1])}"
        self.assertEqual(self.may("autoscaler", "EVAL", script, 1, "pseg:{default}:ready:scenes").split(), ["none", "0"])
        self.refused("autoscaler", "EVAL", script, 1, "pseg:{default}:live")
        self.assertIn("can't run this command", self.may("autoscaler", "EVAL", "return redis.call('del', KEYS[1])", 1,
                                                         "pseg:{default}:ready:scenes"))
        for user in ("monitor", "autoscaler"):
            self.refused(user, "SCAN", 0)
        for user in ("scheduler", "worker", "monitor"):
            self.refused(user, "EVAL", "return 1", 0)

    def test_a_worker_is_no_scheduler(self):
        prefix = "pseg:{default}:"
        for function in sorted(set(users.functions("schedulers")) - set(users.functions("workers"))):
            self.refused("worker", "FCALL", function, 1, prefix)
        self.refused("worker", "FUNCTION", "LOAD", "REPLACE", "#!lua name=pseg1\n")
        self.refused("worker", "SET", f"{prefix}image:team:00", "other pixels")
        self.refused("worker", "SET", f"{prefix}request:team:1", "x")
        self.refused("worker", "CONFIG", "GET", "requirepass")
        self.refused("worker", "INFO")
        for function in sorted(set(users.functions("workers")) - set(users.functions("schedulers"))):
            self.refused("scheduler", "FCALL", function, 1, prefix)

    def test_passwords(self):
        for user in PASSWORDS:
            self.assertIn("WRONGPASS", self.cluster.ask(f"pseg-{user}", "wrong", "PING"))
        self.assertIn("NOAUTH", subprocess.run(["redis-cli", "-p", str(self.cluster.port), "PING"],
                                               capture_output=True, text=True).stdout)
        shown = subprocess.run(["ps", "-o", "args=", "-p", str(self.cluster.redis.child.pid)], capture_output=True,
                               text=True).stdout
        environment = pathlib.Path(f"/proc/{self.cluster.redis.child.pid}/environ").read_bytes().decode()
        for password in PASSWORDS.values():
            self.assertNotIn(password, shown + environment)


if __name__ == "__main__":
    lib.main()
