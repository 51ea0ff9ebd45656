#!/usr/bin/env python3
"""Triton's own Python client (the package tritonclient[grpc]) against the Open Inference Protocol's door."""
import sys

import numpy

import api_open_inference_test as door
import lib_pseg as lib

try:
    import tritonclient.grpc as triton
except ImportError as missing:
    print(f"skipped: {missing}; pip install 'tritonclient[grpc]'")
    sys.exit(77)


class Triton(lib.Test):
    @classmethod
    def setup(cls, cluster):
        door.OpenInference.setup.__func__(cls, cluster)

    register = door.OpenInference.register

    infer = door.OpenInference.infer

    def test_a_client_that_nobody_here_wrote(self):
        with triton.InferenceServerClient(self.scheduler.target) as client:
            self.assertTrue(client.is_server_live() and client.is_server_ready() and client.is_model_ready("scenes"))
            self.assertEqual(client.get_server_metadata().name, "pseg")
            config = client.get_model_config("scenes", as_json=True)["config"]
            self.assertEqual(config["name"], "scenes")
            self.assertEqual([t["data_type"] for t in config["input"]], ["TYPE_STRING"] * 2)
            inputs = []
            for t in client.get_model_metadata("scenes").inputs:
                value = numpy.array({"IMAGE": [lib.SCENE], "PROMPTS": [p.encode() for p in door.PHRASES]}[t.name], dtype=numpy.object_)
                inputs.append(triton.InferInput(t.name, value.shape, t.datatype))
                inputs[-1].set_data_from_numpy(value)
            wanted = [triton.InferRequestedOutput(n) for n in ("IOU", "MASKS")]
            result = client.infer("scenes", inputs, outputs=wanted, request_id="7", client_timeout=lib.START_S)
            expected = door.arrays(self.infer())
            self.assertEqual(result.as_numpy("IOU").tolist(), expected["IOU"].tolist())
            self.assertTrue((result.as_numpy("MASKS") == expected["MASKS"]).all())
            self.assertIsNone(result.as_numpy("BOXES"))
            self.assertEqual(result.get_response().id, "7")
            result = client.infer("scenes", inputs, parameters={"mask_encoding": "png", "mask_threshold": "0.4"}, timeout=60000000)
            self.assertTrue(all(m.startswith(b"\x89PNG") for m in result.as_numpy("MASKS")))
            done = []
            client.async_infer("scenes", inputs, callback=lambda result, error: done.append(error or result))
            lib.until("the callback", lambda: done)
            self.assertTrue((done[0].as_numpy("MASKS") == expected["MASKS"]).all())
            with self.assertRaises(triton.InferenceServerException) as e:
                client.infer("none", inputs)
            self.assertEqual(e.exception.status(), "StatusCode.NOT_FOUND")


if __name__ == "__main__":
    lib.main()
