#!/usr/bin/env python3
"""TLS, client certificates and bearer keys through pseg-scheduler, and all of them replaced while it
runs. The certificates are made here, with openssl."""
import hashlib
import os
import shutil
import subprocess
import sys

import grpc

import lib_pseg as lib
from lib_pseg import pb

if not shutil.which("openssl"):
    print("skipped: no openssl")
    sys.exit(77)


def openssl(folder, *args):
    subprocess.run(["openssl", *map(str, args)], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


class Authority:
    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.cert = folder / f"{name}.pem"
        openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2,
                "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")

    def issue(self, file, common_name, days=2):
        """FILE.pem and FILE.key for localhost and 127.0.0.1."""
        (self.folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(self.folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                f"/CN={common_name}", "-keyout", f"{file}.key.new", "-out", f"{file}.csr")
        openssl(self.folder, "x509", "-req", "-in", f"{file}.csr", "-CA", self.cert, "-CAkey", f"{self.name}.key",
                "-CAcreateserial", "-days", days, "-extfile", "ext", "-out", f"{file}.pem.new")
        for kind in ("key", "pem"):
            os.replace(self.folder / f"{file}.{kind}.new", self.folder / f"{file}.{kind}")
        return self.folder / f"{file}.pem", self.folder / f"{file}.key"


def line(key, tenant):
    return f"{hashlib.sha256(key.encode()).hexdigest()} {tenant}\n"


class Auth(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.folder = cluster.folder
        cls.ca = Authority(cls.folder, "ca")
        cls.cert, cls.key = cls.ca.issue("server", "localhost")
        cls.tls = ("--tls-cert", cls.cert, "--tls-key", cls.key, "--default-model", "empty")

    def credentials(self, client=None, ca=None):
        cert, key = client or (None, None)
        return grpc.ssl_channel_credentials((ca or self.ca.cert).read_bytes(), key and key.read_bytes(),
                                            cert and cert.read_bytes())

    def connect(self, scheduler, **kw):
        return self.cluster.stub(scheduler, credentials=self.credentials(**kw))

    def works(self, stub, **kw):
        return stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S, **kw) is not None

    def no_connection(self, stub):
        with self.assertRaises(grpc.RpcError) as caught:
            stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def unauthenticated(self, stub, part, **kw):
        found = lib.failure(stub.ListModels, pb.ListModelsRequest(), **kw)
        self.assertFails(found, "UNAUTHENTICATED", "UNAUTHENTICATED")
        self.assertIn(part, found.message)

    def test_tls(self):
        scheduler = self.cluster.scheduler(*self.tls)
        self.assertTrue(self.works(self.connect(scheduler)))
        self.no_connection(self.cluster.stub(scheduler))
        self.no_connection(self.connect(scheduler, ca=Authority(self.folder, "stranger").cert))
        self.assertEqual(scheduler.stop(), 0)

    def test_a_certificate_is_replaced_while_it_runs(self):
        cert, key = self.ca.issue("renewed", "localhost")
        scheduler = self.cluster.scheduler("--tls-cert", cert, "--tls-key", key)
        before = self.connect(scheduler)
        self.assertTrue(self.works(before))
        other = Authority(self.folder, "other")
        self.no_connection(self.connect(scheduler, ca=other.cert))
        other.issue("renewed", "localhost")
        self.assertTrue(self.works(self.connect(scheduler, ca=other.cert)), "new connections see the new certificate")
        self.assertTrue(self.works(before), "and those that are there stay")
        self.no_connection(self.connect(scheduler))
        cert.write_text("nonsense\n")
        self.assertTrue(self.works(self.connect(scheduler, ca=other.cert)), "what does not parse changes nothing")

    def test_client_certificates(self):
        scheduler = self.cluster.scheduler(*self.tls, "--tls-client-ca", self.ca.cert)
        alice = self.connect(scheduler, client=self.ca.issue("alice", "alice"))
        bob = self.connect(scheduler, client=self.ca.issue("bob", "bob"))
        job = lib.create(alice)
        self.assertEqual(alice.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S), job)
        # Another tenant's job does not exist, and neither does his image.
        self.assertFails(lib.failure(bob.GetJob, pb.GetJobRequest(name=job.name)), "NOT_FOUND", "JOB_NOT_FOUND")
        for call, q in ((bob.CancelJob, pb.CancelJobRequest), (bob.WaitJob, pb.WaitJobRequest),
                        (bob.FetchMasks, pb.FetchMasksRequest)):
            self.assertFails(lib.failure(call, q(name=job.name)), "NOT_FOUND", "JOB_NOT_FOUND")
        self.assertEqual(len(bob.ListJobs(pb.ListJobsRequest(), timeout=lib.CALL_S).jobs), 0)
        self.assertFails(lib.failure(bob.CreateJob, pb.CreateJobRequest(job=lib.spec(job.image_sha256))),
                         "FAILED_PRECONDITION", "IMAGE_NOT_HELD")
        self.assertFalse(bob.BatchCheckImages(pb.BatchCheckImagesRequest(sha256=[job.image_sha256]),
                                              timeout=lib.CALL_S).images[0].existed)
        # A request id is the tenant's own.
        mine, his = (lib.create(s, request_id="one") for s in (alice, bob))
        self.assertNotEqual(mine.name, his.name)
        self.no_connection(self.connect(scheduler))
        self.no_connection(self.connect(scheduler, client=Authority(self.folder, "evil").issue("mallory", "alice")))
        odd = self.connect(scheduler, client=self.ca.issue("odd", "Not A Tenant"))
        self.assertFails(lib.failure(odd.ListModels, pb.ListModelsRequest()), "PERMISSION_DENIED", "PERMISSION_DENIED")

    def test_bearer_keys(self):
        keys = self.folder / "keys"
        keys.write_text("# who may call\n" + line("open-sesame", "alice") + "\n" + line("other", "bob"))
        scheduler = self.cluster.scheduler(*self.tls, "--keys", keys)
        stub = self.connect(scheduler)
        sesame = [("authorization", "Bearer open-sesame")]
        self.assertTrue(self.works(stub, metadata=sesame))
        self.unauthenticated(stub, "a key is needed")
        for wrong in ("Bearer wrong", "Bearer open-sesame2", "Bearer Open-sesame"):
            self.unauthenticated(stub, "the key is not known", metadata=[("authorization", wrong)])
        for wrong in ("Bearer ", "open-sesame", "Basic b3Blbi1zZXNhbWU=", ""):
            self.unauthenticated(stub, "key", metadata=[("authorization", wrong)])
        # Health and reflection need none.
        channel = self.cluster.channel(scheduler, credentials=self.credentials())
        request = lib.message("grpc.health.v1.HealthCheckRequest")()
        self.assertEqual(lib.Stub(channel, "grpc.health.v1.Health").Check(request, timeout=lib.CALL_S).status, 1)
        job = stub.CreateJob(pb.CreateJobRequest(job=lib.spec()), timeout=lib.CALL_S, metadata=sesame)
        self.assertFails(lib.failure(stub.GetJob, pb.GetJobRequest(name=job.name),
                                     metadata=[("authorization", "Bearer other")]), "NOT_FOUND", "JOB_NOT_FOUND")
        found = lib.failure(stub.UploadImage, iter([]))  # streams are asked, too
        self.assertFails(found, "UNAUTHENTICATED", "UNAUTHENTICATED")

    def test_keys_are_replaced_while_it_runs(self):
        keys = self.folder / "changing"
        keys.write_text(line("one", "alice"))
        scheduler = self.cluster.scheduler("--keys", keys, "--default-model", "empty")
        stub = self.cluster.stub(scheduler)

        def holds(*good):
            def known(key):
                try:
                    return self.works(stub, metadata=[("authorization", f"Bearer {key}")])
                except grpc.RpcError as e:
                    self.assertEqual(e.code(), grpc.StatusCode.UNAUTHENTICATED)
                    return False
            return [k for k in ("one", "two", "three") if known(k)] == list(good)
        self.assertTrue(holds("one"))
        keys.write_text(line("one", "alice") + line("two", "bob"))
        lib.until("a key being added", lambda: holds("one", "two"), 10)
        new = self.folder / "changing.new"
        new.write_text(line("three", "alice"))
        os.replace(new, keys)
        lib.until("keys being withdrawn", lambda: holds("three"), 10)
        for bad, why in (("nonsense\n", "changing:1"), ("# nobody\n", "holds no keys"), (line("one", "Bad"), "tenant")):
            keys.write_text(bad)
            lib.until("the mistake being told", lambda why=why: why in scheduler.log(), 10)
            self.assertTrue(holds("three"), "the earlier keys stay in force")
        keys.unlink()
        lib.until("the loss being told", lambda: "no such file" in scheduler.log().lower(), 10)
        self.assertTrue(holds("three"))
        keys.write_text(line("one", "alice"))
        lib.until("the keys being back", lambda: holds("one"), 10)

    def test_a_key_that_pseg_made(self):
        keys = self.folder / "made"
        key = subprocess.run([lib.BIN / "pseg", "key", "new", "team", "--keys", keys], capture_output=True, text=True,
                             check=True).stdout.strip()
        scheduler = self.cluster.scheduler("--keys", keys)
        stub = self.cluster.stub(scheduler)
        self.assertTrue(self.works(stub, metadata=[("authorization", f"Bearer {key}")]))
        self.unauthenticated(stub, "the key is not known", metadata=[("authorization", f"Bearer {key[:-1]}")])

    def test_the_authority_of_clients_is_replaced_while_it_runs(self):
        old, new = Authority(self.folder, "old-clients"), Authority(self.folder, "new-clients")
        trusted = self.folder / "trusted.pem"
        trusted.write_bytes(old.cert.read_bytes())
        scheduler = self.cluster.scheduler(*self.tls, "--tls-client-ca", trusted)
        before, after = old.issue("before", "alice"), new.issue("after", "alice")
        there = self.connect(scheduler, client=before)
        job = lib.create(there)
        self.no_connection(self.connect(scheduler, client=after))
        replaced = self.folder / "trusted.new"
        replaced.write_bytes(new.cert.read_bytes())
        os.replace(replaced, trusted)
        renewed = self.connect(scheduler, client=after)
        self.assertEqual(renewed.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S).name, job.name,
                         "the tenant is the name in the certificate, whoever signed it")
        self.no_connection(self.connect(scheduler, client=before))
        self.assertTrue(self.works(there), "and who is there stays")

    def test_keys_and_certificates_together(self):
        keys = self.folder / "both"
        keys.write_text(line("open-sesame", "team"))
        scheduler = self.cluster.scheduler(*self.tls, "--tls-client-ca", self.ca.cert, "--keys", keys)
        stub = self.connect(scheduler, client=self.ca.issue("carol", "carol"))
        self.unauthenticated(stub, "a key is needed")
        self.assertTrue(self.works(stub, metadata=[("authorization", "Bearer open-sesame")]))


if __name__ == "__main__":
    lib.main()
