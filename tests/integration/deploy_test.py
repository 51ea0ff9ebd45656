#!/usr/bin/env python3
"""Manifests, units and container files: what they tell the programs is told to the real programs here,
probes and all. Schemas and tools are used where they are: kustomize or kubectl, the Python package
kubernetes-validate, systemd-analyze."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import lib_pseg as lib
from lib_pseg import pb

try:
    import yaml
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

DEPLOY = pathlib.Path("deploy")
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ["base", *(f"overlays/{n}" for n in ("nvidia", "tls", "external-redis", "keda", "keda-push"))]


def documents(text):
    return [d for d in yaml.safe_load_all(text) if d]


def plain_base():
    return [d for f in sorted((KUBERNETES / "base").glob("*.yaml")) if f.name != "kustomization.yaml"
            for d in documents(f.read_text())]


def named(objects, kind, name):
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)


def container(objects, kind, name):
    return named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def local(args, **replace):
    """A program's arguments as a test may use them: free ports on loopback."""
    out, values = [], dict(replace, **{"--listen": "127.0.0.1:0", "--metrics-listen": "127.0.0.1:0"})
    for a in args:
        out.append(values.get(out[-1], a) if out and out[-1] in values else a)
    return out


def http(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=lib.CALL_S) as reply:
            return reply.status
    except urllib.error.HTTPError as e:
        return e.code


class Kubernetes(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.base = plain_base()

    def start(self, kind):
        """The container's own arguments and variables, but for addresses."""
        spec = container(self.base, "Deployment", f"pseg-{kind}")
        args = local(spec["args"])
        ready = self.cluster.folder / f"{kind}.k8s"
        env = {e["name"]: e["value"] for e in spec["env"] if "value" in e}
        self.assertEqual(list(env), ["PSEG_REDIS"])
        p = self.cluster._start(f"k8s-{kind}", [lib.BIN / f"pseg-{kind}", *args, "--ready-file", ready], ready=ready,
                                env={"PSEG_REDIS": f"unix:{self.cluster.socket}"})
        p.target = p.wait_ready()
        p.port = int(re.search(r"metrics listen=\S+ port=(\d+)", p.log()).group(1))
        return spec, p

    def test_arguments_and_probes(self):
        scheduler_spec, scheduler = self.start("scheduler")
        worker_spec, worker = self.start("worker")
        scheduler.target = scheduler.target.replace("0.0.0.0", "127.0.0.1")
        health = self.cluster.stub(scheduler, service="grpc.health.v1.Health")
        for probe in ("livenessProbe", "readinessProbe"):
            grpc_probe = scheduler_spec[probe]["grpc"]
            request = lib.message("grpc.health.v1.HealthCheckRequest")(service=grpc_probe.get("service", ""))
            lib.until(probe, lambda: health.Check(request, timeout=lib.CALL_S).status == 1)
            self.assertEqual(grpc_probe["port"], next(p["containerPort"] for p in scheduler_spec["ports"]
                                                      if p["name"] == "grpc"))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = worker_spec[probe]["httpGet"]["path"]
            lib.until(probe, lambda: http(worker.port, path) == 200)
        for path in ("/livez", "/readyz"):  # the TLS overlay's probes of the scheduler
            self.assertEqual(http(scheduler.port, path), 200)
        stub = self.cluster.stub(scheduler)
        job = lib.wait(stub, lib.create(stub, model="scenes").name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)
        for p, spec in ((scheduler, "pseg-scheduler"), (worker, "pseg-worker")):
            grace = named(self.base, "Deployment", spec)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            self.assertEqual(p.stop(grace), 0)

    def test_the_list_that_keda_reads(self):
        """Its length is what waits and what runs."""
        trigger = named(documents((KUBERNETES / "overlays/keda/scaledobject.yaml").read_text()), "ScaledObject",
                        "pseg-worker")["spec"]["triggers"][0]
        self.assertEqual(trigger["type"], "redis")
        ready = trigger["metadata"]["listName"].replace("scenes", "empty")
        scheduler = self.cluster.scheduler("--default-model", "empty")
        stub = self.cluster.stub(scheduler)
        names = [lib.create(stub).name for _ in range(3)]
        self.assertEqual(self.cluster.redis_cli("llen", ready), "3")
        self.cluster.claim(names[0])
        self.assertEqual(self.cluster.redis_cli("llen", ready), "3")
        self.cluster.worker("empty")
        for name in names[1:]:
            lib.wait(stub, name)
        self.assertEqual(self.cluster.redis_cli("llen", ready), "1")

    def test_what_keda_is_told(self):
        """The overlay's port and metadata, as KEDA passes them on: all of a trigger's metadata."""
        folder = KUBERNETES / "overlays/keda-push"
        objects = documents((folder / "scaledobject.yaml").read_text())
        trigger = named(objects, "ScaledObject", "pseg-worker")["spec"]["triggers"][0]
        self.assertEqual(trigger["type"], "external-push")
        patches = documents((folder / "kustomization.yaml").read_text())[0]["patches"]
        added = [o["value"] for p in patches if p["target"] == {"kind": "Deployment", "name": "pseg-scheduler"}
                 for o in yaml.safe_load(p["patch"])]
        option, address, port = added
        service = named(objects, "Service", "pseg-scaler")
        host = f"{service['metadata']['name']}.pseg.svc:{service['spec']['ports'][0]['port']}"
        self.assertEqual(trigger["metadata"]["scalerAddress"], host)
        self.assertEqual((service["spec"]["ports"][0]["targetPort"], address), (port["name"], f"0.0.0.0:{port['containerPort']}"))
        spec = container(self.base, "Deployment", "pseg-scheduler")
        ready = self.cluster.folder / "scaler.k8s"
        self.cluster._start("k8s-keda", [lib.BIN / "pseg-scheduler", *local([*spec["args"], option, address],
                                         **{"--scaler-listen": "127.0.0.1:0"}), "--scaler-ready-file", ready],
                            env={"PSEG_REDIS": f"unix:{self.cluster.socket}"})
        target = lib.until("the scaler", lambda: ready.exists() and ready.read_text())
        with lib.grpc.insecure_channel(target) as channel:
            stub = lib.Stub(channel, "externalscaler.ExternalScaler")
            ref = lib.message("externalscaler.ScaledObjectRef")(name="pseg-worker", namespace="pseg",
                                                                scalerMetadata=trigger["metadata"])
            self.assertEqual(stub.GetMetricSpec(ref, timeout=lib.CALL_S).metricSpecs[0].targetSizeFloat,
                             float(trigger["metadata"]["targetSeconds"]))
            self.assertIn(stub.IsActive(ref, timeout=lib.CALL_S).result, (True, False))

    def test_pods_are_confined(self):
        for o in self.base:
            if o["kind"] not in ("Deployment", "StatefulSet"):
                continue
            pod = o["spec"]["template"]["spec"]
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["automountServiceAccountToken"])
            for c in pod["containers"]:
                self.assertTrue(c["securityContext"]["readOnlyRootFilesystem"])
                self.assertEqual(c["securityContext"]["capabilities"], {"drop": ["ALL"]})
                self.assertIn("memory", c["resources"]["limits"])

    def test_redis_takes_its_configuration(self):
        config = named(self.base, "ConfigMap", "redis")["data"]["redis.conf"]
        path, socket = self.cluster.folder / "k8s.conf", self.cluster.folder / "k8s.sock"
        path.write_text(config + f"\nport 0\nunixsocket {socket}\ndir {self.cluster.folder}\nappenddirname k8s\n")
        spec = container(self.base, "StatefulSet", "redis")
        data = named(self.base, "ConfigMap", "redis")["data"]
        for name in ("users.acl", "start.sh"):
            self.assertEqual(data[name], (DEPLOY / "redis" / name).read_text())
        self.assertEqual(spec["args"], ["sh", *(f"/etc/redis/{n}" for n in ("start.sh", "users.acl", "redis.conf"))])
        args = ["sh", DEPLOY / "redis/start.sh", DEPLOY / "redis/users.acl", path]
        env = {e["name"]: f"secret-{e['valueFrom']['secretKeyRef']['key']}" for e in spec["env"]}
        self.cluster._start("k8s-redis", args, env=env)

        def ask(user, *command):
            return subprocess.run(["redis-cli", "-s", socket, "--no-auth-warning", "--user", f"pseg-{user}", "--pass",
                                   f"secret-{user}", *command], capture_output=True, text=True).stdout.split()
        lib.until("redis", lambda: ask("monitor", "ping") == ["PONG"])
        self.assertEqual(ask("scheduler", "config", "get", "maxmemory-policy"), ["maxmemory-policy", "noeviction"])
        self.assertEqual(ask("scheduler", "config", "get", "appendonly"), ["appendonly", "yes"])
        self.assertEqual(ask("worker", "ping"), ["PONG"])
        probe = spec["readinessProbe"]["exec"]["command"]
        probe[-1] = probe[-1].replace("redis-cli", f"redis-cli -s {socket}")
        self.assertEqual(subprocess.run(probe, env={**os.environ, **env}).returncode, 0)

    def test_schemas(self):
        render = next((c for c in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(c[0])), None)
        if not render:
            self.skipTest("no kustomize and no kubectl")
        try:
            import kubernetes_validate
        except ImportError:
            kubernetes_validate = None
        for overlay in OVERLAYS:
            done = subprocess.run([*render, KUBERNETES / overlay], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            objects = documents(done.stdout)
            self.assertGreater(len(objects), 5)
            for o in objects:
                self.assertEqual(o["metadata"].get("namespace", "pseg"), "pseg")
                if kubernetes_validate and not o["apiVersion"].startswith("keda.sh"):
                    for version in ("1.29", "1.33", kubernetes_validate.latest_version()):
                        with self.subTest(f"{overlay} {o['kind']} {version}"):
                            kubernetes_validate.validate(o, version, strict=True)
            self.check_overlay(overlay, objects)
        if not kubernetes_validate:
            self.skipTest("rendered; no kubernetes-validate for the schemas")

    def check_overlay(self, overlay, objects):
        scheduler = container(objects, "Deployment", "pseg-scheduler")
        worker = container(objects, "Deployment", "pseg-worker")
        if overlay == "overlays/tls":
            self.assertIn("--tls-cert", scheduler["args"])
            self.assertNotIn("--insecure", scheduler["args"])
        if overlay == "overlays/nvidia":
            self.assertEqual(worker["resources"]["limits"]["nvidia.com/gpu"], 1)
            self.assertTrue(worker["image"].endswith(":nvidia"))
        if overlay == "overlays/external-redis":
            self.assertFalse([o for o in objects if o["metadata"]["name"] == "redis"])
            self.assertEqual([e["name"] for e in worker["env"]], ["PSEG_REDIS"])
        if overlay == "overlays/keda-push":
            self.assertEqual(scheduler["args"][-2:], ["--scaler-listen", "0.0.0.0:7435"])
            script = next(o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("pod-costs-"))
            self.assertEqual(script["data"]["pod-costs.sh"],
                             (KUBERNETES / "components/pod-costs/pod-costs.sh").read_text())
            costs = container(objects, "Deployment", "pod-costs")
            self.assertTrue(costs["securityContext"]["readOnlyRootFilesystem"])
            self.assertFalse(named(objects, "Deployment", "pseg-worker")["spec"]["template"]["spec"]["automountServiceAccountToken"])
            policy = named(objects, "NetworkPolicy", "pseg-worker")["spec"]["ingress"][-1]
            self.assertEqual(policy["from"], [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "pod-costs"}}}])
            policy = named(objects, "NetworkPolicy", "pseg-scheduler")["spec"]["ingress"][-1]
            self.assertEqual(policy["ports"], [{"port": "scaler"}])
        if overlay in ("overlays/keda", "overlays/keda-push"):
            self.assertNotIn("replicas", named(objects, "Deployment", "pseg-worker")["spec"])


class Machines(lib.Test):
    def test_configurations_of_the_units(self):
        for program, options in (("scheduler", ["--listen", "127.0.0.1:0", "--admin-listen", f"unix:{self.cluster.folder}/admin.sock"]), ("worker", ["--model", "empty"])):
            ready = self.cluster.folder / f"unit-{program}"
            p = self.cluster._start(f"unit-{program}", [
                lib.BIN / f"pseg-{program}", "--config", DEPLOY / f"systemd/{program}.conf", "--redis",
                f"unix:{self.cluster.socket}", "--metrics-listen", "127.0.0.1:0", "--ready-file", ready, *options],
                ready=ready)
            p.wait_ready()
            self.assertEqual(p.stop(), 0)

    def test_options_in_comments_exist(self):
        for program in ("scheduler", "worker"):
            text = (DEPLOY / f"systemd/{program}.conf").read_text()
            said = subprocess.run([lib.BIN / f"pseg-{program}", "--help"], capture_output=True, text=True).stdout
            for name in re.findall(r"^#? ?(\w+) = ", text, re.M):
                if name != "name":
                    self.assertIn(f"--{name.replace('_', '-')}", said)

    def test_units(self):
        if not shutil.which("systemd-analyze"):
            self.skipTest("no systemd-analyze")
        folder = self.cluster.folder / "units"
        folder.mkdir()
        for unit in (DEPLOY / "systemd").glob("*.service"):
            text = unit.read_text().replace("/usr/bin/pseg-", f"{lib.BIN.resolve()}/pseg-")
            (folder / unit.name.replace("@", "@0")).write_text(text)
        for unit in folder.iterdir():
            done = subprocess.run(["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", unit],
                                  capture_output=True, text=True)
            mine = [line for line in done.stderr.splitlines() if unit.name in line]
            self.assertEqual(mine, [])

    def test_compose_names_what_is_there(self):
        compose = yaml.safe_load((DEPLOY / "containers/compose.yaml").read_text())
        stages = re.findall(r"^FROM \S+ AS (\S+)", (DEPLOY / "containers/Containerfile").read_text(), re.M)
        for name in ("scheduler", "worker"):
            service = compose["services"][name]
            self.assertIn(service["build"]["target"], stages)
            args = local(service["command"])
            self.assertEqual(service["environment"]["PSEG_REDIS"],
                             f"redis://pseg-{name}:${{PSEG_{name.upper()}_PASSWORD}}@redis:6379")
            ready = self.cluster.folder / f"compose-{name}"
            p = self.cluster._start(f"compose-{name}", [lib.BIN / f"pseg-{name}", *args, "--ready-file", ready],
                                    ready=ready, env={"PSEG_REDIS": f"unix:{self.cluster.socket}"})
            p.wait_ready()
            self.assertEqual(p.stop(), 0)
        made = subprocess.run(["sh", DEPLOY / "containers/passwords.sh"], capture_output=True, text=True).stdout
        made = dict(line.split("=") for line in made.splitlines())
        self.assertEqual(set(made), set(compose["services"]["redis"]["environment"]))
        self.assertEqual({len(p) for p in made.values()}, {48})
        redis = compose["services"]["redis"]["command"]
        self.assertEqual(redis[:3], ["sh", "/pseg/start.sh", "/pseg/users.acl"])
        self.assertEqual(redis[redis.index("--maxmemory-policy") + 1], "noeviction")
        for stage in ("scheduler", "worker-cpu", "worker-nvidia", "pod-costs"):
            self.assertIn(stage, stages)

    def test_run_time_packages_are_those_that_are_linked(self):
        """Every library that a program names is in the list of its image, or in the base system."""
        if not shutil.which("dpkg-query") or "Debian GNU/Linux 12" not in pathlib.Path("/etc/os-release").read_text():
            self.skipTest("the lists are of Debian 12")
        base = {"libc6", "zlib1g", "libstdc++6", "libgcc-s1"}
        workers = ["pseg-worker", "pseg-run", "pseg-decode", "pseg-data", "pseg-eval", "pseg-train", "pseg"]
        for image, programs in (("scheduler", ["pseg-scheduler"]), ("worker", workers)):
            listed = set(re.sub(r"#.*", "", (DEPLOY / f"containers/packages-{image}.txt").read_text()).split())
            for program in programs:
                said = subprocess.run(["objdump", "-p", lib.BIN / program], capture_output=True, text=True).stdout
                wanted = set(re.findall(r"NEEDED\s+(\S+)", said))
                paths = dict(re.findall(r"(\S+) => (/\S+)", subprocess.run(
                    ["ldd", lib.BIN / program], capture_output=True, text=True).stdout))
                for library in wanted - {n for n in wanted if n not in paths}:
                    path = pathlib.Path(paths[library]).resolve()
                    # The base of Debian 12 is registered below /lib and lies below /usr/lib.
                    owner = "".join(subprocess.run(["dpkg-query", "-S", p], capture_output=True, text=True).stdout
                                    for p in (path, str(path).removeprefix("/usr"))).split(":")[0]
                    if "asan" in library or "ubsan" in library or not owner:
                        continue
                    self.assertTrue(owner in listed | base or owner == "libglib2.0-0", f"{program}: {library} of {owner}")


if __name__ == "__main__":
    lib.main()
