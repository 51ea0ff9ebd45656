"""PSEG beside ONNX Runtime, OpenVINO and PyTorch, on one machine and the same work.

    python3 -m venv ENV && ENV/bin/pip install -r tests/bench/requirements.txt
    ENV/bin/python tests/bench/peers.py --export DIR                 # once: models as ONNX, 5 minutes
    ENV/bin/python tests/bench/peers.py --models DIR --pseg build/release/bin/pseg --out peers.json

The model is the reference's own (tests/golden/pseg_reference.py): Hugging Face's Dinov2Model up to
the last tap and PSEG's neck, CLIP's text tower, PSEG's decoder, with random weights; PSEG runs its
presets of the same shapes. Every peer runs in a process of its own, one at a time, --rounds times
in turn, so that a slow minute of the machine meets all of them; the median of the rounds' medians
counts. Two threads each unless --threads says otherwise, OMP_WAIT_POLICY=passive, one warm-up.

int8 is ONNX Runtime's static quantisation (weights by channel, activations by tensor, calibrated
on random images): its speed is that of int8, its results say nothing about fidelity. A peer that
cannot do a row says why and is left out of it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "golden"))

# name: (part, preset of `pseg bench engine`, hidden, heads, taps, pixels, batch or phrases)
BASE = ("dinov2-base", 768, 12, (3, 6, 9, 11))
LARGE = ("dinov2-large", 1024, 16, (6, 12, 18, 23))
CASES = {
    "base-1": ("image", *BASE, 224, 1),
    "base-8": ("image", *BASE, 224, 8),
    "base-448-1": ("image", "dinov2-base@448", *BASE[1:], 448, 1),
    "large-1": ("image", *LARGE, 224, 1),
    "text-1": ("text", *BASE, 224, 1),
    "decoder-1": ("decoder", *BASE, 224, 1),
    "decoder-32": ("decoder", *BASE, 224, 32),
}
TOKENS = 5  # of bench engine's first phrase, "a red circle", with both ends
PEERS = ["pseg-fp32", "pseg-bf16x3", "pseg-bf16", "ort-fp32", "ort-int8", "openvino-fp32",
         "openvino-bf16", "openvino-int8", "torch-fp32", "torch-bf16"]


def build(case):
    """The PyTorch module of a case and its inputs."""
    import torch
    from transformers import (CLIPTextConfig, CLIPTextModelWithProjection, Dinov2Config,
                              Dinov2Model)

    from pseg_reference import Pseg, PsegConfig, PsegHead

    part, _, hidden, heads, taps, pixels, n = CASES[case]
    torch.manual_seed(0)
    layers = taps[-1] if part == "image" else 1
    vision = Dinov2Model(Dinov2Config(hidden_size=hidden, num_attention_heads=heads,
                                      num_hidden_layers=layers, image_size=518))
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(num_hidden_layers=12 if part == "text" else 1, eos_token_id=49407))
    grid = (pixels // 14, pixels // 14)
    model = Pseg(vision, text, PsegHead(PsegConfig(taps=taps, vision_dim=hidden, grid=grid,
                                                   image_size=(pixels, pixels)))).eval()

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = model if part != "decoder" else model.head.decoder

        def forward(self, *x):
            if part == "image":
                return self.m.encode_image(x[0])
            if part == "text":
                return self.m.head.text_proj(self.m.text(x[0]).text_embeds)
            return self.m(x[0], x[1])

    if part == "image":
        inputs = (torch.randn(n, 3, pixels, pixels),)
    elif part == "text":
        ids = torch.randint(1000, 40000, (n, TOKENS))
        ids[:, 0], ids[:, -1] = 49406, 49407
        inputs = (ids,)
    else:
        inputs = (torch.randn(n, 256, *grid), torch.randn(n, 1, 256))
    return Part().eval(), inputs


def export(folder, cases):
    import numpy as np
    import onnx
    import torch
    from onnxruntime import quantization as quant

    class Reader(quant.CalibrationDataReader):
        def __init__(self, inputs):
            self.left = [inputs]

        def get_next(self):
            return self.left.pop() if self.left else None

    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        model, inputs = build(case)
        path = folder / f"{case}.onnx"
        names = [f"x{i}" for i in range(len(inputs))]
        with torch.no_grad():
            torch.onnx.export(model, inputs, str(path), input_names=names, output_names=["y"],
                              dynamo=True)
        arrays = dict(zip(names, (x.numpy() for x in inputs)))
        np.savez(folder / f"{case}.npz", **arrays)
        model = onnx.load(path)
        (folder / f"{case}.onnx.data").unlink(missing_ok=True)
        onnx.save(model, path)  # one file: what quantises it does not find the other
        quant.quantize_static(
            str(path), str(folder / f"{case}-int8.onnx"), Reader(arrays), per_channel=True,
            quant_format=quant.QuantFormat.QDQ, op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=quant.QuantType.QInt8, activation_type=quant.QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
            # vpmaddubsw saturates: 7 bits for weights where there is no VNNI
            reduce_range="vnni" not in cpu_flags())
        print(f"{case} exported", file=sys.stderr, flush=True)


def cpu_flags():
    for line in open("/proc/cpuinfo"):
        if line.startswith("flags"):
            return line
    return ""


def timed(run, seconds):
    run()
    times, end, cpu = [], time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end or len(times) < 2:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return {"ms": 1e3 * statistics.median(times), "min_ms": 1e3 * min(times), "runs": len(times),
            "cpu_ms": 1e3 * (time.process_time() - cpu) / len(times)}


def child(peer, case, folder, seconds, threads, passive):
    import numpy as np

    maker, precision = peer.split("-")
    stem = f"{case}-int8" if precision == "int8" else case
    inputs = dict(np.load(folder / f"{case}.npz"))
    if maker == "ort":
        import onnxruntime as ort

        o = ort.SessionOptions()
        o.intra_op_num_threads, o.inter_op_num_threads = threads, 1
        if passive:
            o.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(folder / f"{stem}.onnx"), o, ["CPUExecutionProvider"])
        out = timed(lambda: session.run(None, inputs), seconds)
        return {**out, "version": ort.__version__}
    if maker == "openvino":
        import openvino as ov

        core = ov.Core()
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                  "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        request = core.compile_model(str(folder / f"{stem}.onnx"), "CPU",
                                     config).create_infer_request()
        out = timed(lambda: request.infer(inputs), seconds)
        return {**out, "version": ov.__version__}
    import torch

    torch.set_num_threads(threads)
    model, x = build(case)
    if precision == "bf16":
        model = model.to(torch.bfloat16)
        x = tuple(t.to(torch.bfloat16) if t.is_floating_point() else t for t in x)
    run = torch.compile(model)
    with torch.no_grad():
        return {**timed(lambda: run(*x), seconds), "version": torch.__version__}


def pseg(peer, case, a):
    part, preset, _, _, _, _, n = CASES[case]
    cmd = [a.pseg, "bench", "engine", "--preset", preset, "--precision", peer.split("-")[1],
           "--json", "--threads", str(a.threads), "--seconds", str(a.seconds), "--batch",
           str(n if part == "image" else 1)]
    out = json.loads(subprocess.run(cmd, capture_output=True, text=True, check=True).stdout)
    version = out["machine"]["pseg"]
    if part == "image":
        return {k: out["encode_image"][0][k] for k in ("ms", "cpu_ms")} | {"version": version}
    row = [p for p in out["phrases"] if p["phrases"] == n][0]
    return {"ms": row["encode_text_ms" if part == "text" else "decode_ms"], "version": version}


def measure(peer, case, a):
    if peer.startswith("pseg"):
        return pseg(peer, case, a)
    if peer.endswith("int8") and not (a.models / f"{case}-int8.onnx").exists():
        raise RuntimeError("no int8 model")
    env = dict(os.environ, OMP_WAIT_POLICY="passive", OMP_NUM_THREADS=str(a.threads))
    cmd = [sys.executable, str(HERE), "--child", peer, "--case", case, "--models", str(a.models),
           "--seconds", str(a.seconds), "--threads", str(a.threads)] + ["--cpu"] * a.cpu
    p = subprocess.run(cmd, capture_output=True, text=True, env=env)
    if p.returncode:
        raise RuntimeError((p.stderr.strip().splitlines() or ["no output"])[-1][:200])
    return json.loads(p.stdout.strip().splitlines()[-1])


def table(results, key):
    for case, rows in results.items():
        n = CASES[case][6]
        best = {}
        for peer, r in rows.items():
            kind = peer.split("-")[1].replace("bf16x3", "fp32")
            if key in r and not peer.startswith("pseg"):
                best[kind] = min(best.get(kind, 1e30), r[key])
        print(f"\n{case}\n  {'':16} {key:>9} {'a second':>9}  of the best peer in it")
        for peer, r in sorted(rows.items(), key=lambda x: x[1].get(key, 1e30)):
            if key not in r:
                print(f"  {peer:16} {r.get('error', 'not measured')}")
                continue
            kind = peer.split("-")[1].replace("bf16x3", "fp32")
            ratio = f"{best[kind] / r[key]:5.2f}" if kind in best else "    -"
            print(f"  {peer:16} {r[key]:9.1f} {1e3 * n / r[key]:9.2f}  {ratio}   {r['version']}")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--export", type=pathlib.Path, metavar="DIR")
    ap.add_argument("--models", type=pathlib.Path, metavar="DIR")
    ap.add_argument("--pseg", default="build/release/bin/pseg")
    ap.add_argument("--case", nargs="*", choices=sorted(CASES), default=list(CASES))
    ap.add_argument("--peer", nargs="*", choices=PEERS)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=float, default=4, help="for each measurement")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--cpu", action="store_true",
                    help="compare processor time, not time by the clock: for a machine that is never "
                         "quiet (says nothing of how well work is spread)")
    ap.add_argument("--out", type=pathlib.Path, help="JSON, added to if it is there")
    ap.add_argument("--child", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.export:
        return export(a.export, a.case)
    if not a.models:
        ap.error("--models DIR, as --export made it")
    if a.child:
        print(json.dumps(child(a.child, a.case[0], a.models, a.seconds, a.threads, a.cpu)))
        return
    has_bf16 = "avx512_bf16" in cpu_flags() or "amx_bf16" in cpu_flags()
    peers = a.peer or [p for p in PEERS if has_bf16 or "bf16" not in p]
    all_runs = json.loads(a.out.read_text()) if a.out and a.out.exists() else []
    for turn in range(a.rounds):
        for case in a.case:
            for peer in peers:
                try:
                    r = measure(peer, case, a)
                except (RuntimeError, subprocess.CalledProcessError) as e:
                    r = {"error": str(e)}
                all_runs.append({"case": case, "peer": peer, **r})
                print(f"round {turn + 1}: {case} {peer}: {r.get('ms', r.get('error'))}",
                      file=sys.stderr, flush=True)
                if a.out:
                    a.out.write_text(json.dumps(all_runs, indent=1) + "\n")
    results = {}
    for r in all_runs:
        results.setdefault(r["case"], {}).setdefault(r["peer"], []).append(r)
    key = "cpu_ms" if a.cpu else "ms"
    table({c: {p: {**rs[-1], **({key: statistics.median(r[key] for r in rs if key in r)}
                                if any(key in r for r in rs) else {})}
               for p, rs in peers_of.items()} for c, peers_of in results.items()}, key)


if __name__ == "__main__":
    main()
