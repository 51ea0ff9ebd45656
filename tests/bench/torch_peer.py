"""Images per second of PyTorch on the work of `pseg bench engine --preset dinov2-base`.

    python3 tests/bench/torch_peer.py fp32|bf16 eager|compile [--preset base|large] [--seconds 4]

Needs torch >= 2.9 and transformers >= 5 (tests/golden/requirements.txt). The model is the reference's
own: Hugging Face's Dinov2Model up to the last tap (11 of DINOv2-base's 12 blocks) and PSEG's neck,
random weights, as PSEG computes it. Medians; run it in turn with `pseg bench engine`, each alone on
the machine.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))

import torch  # noqa: E402
from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from pseg_reference import Pseg, PsegConfig, PsegHead  # noqa: E402

SHAPES = {"base": (768, 12, (3, 6, 9, 11)), "large": (1024, 16, (6, 12, 18, 23))}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("precision", choices=["fp32", "bf16"])
    ap.add_argument("mode", choices=["eager", "compile"])
    ap.add_argument("--preset", choices=sorted(SHAPES), default="base")
    ap.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    ap.add_argument("--seconds", type=float, default=4)
    a = ap.parse_args()
    hidden, heads, taps = SHAPES[a.preset]
    torch.manual_seed(0)
    vision = Dinov2Model(Dinov2Config(hidden_size=hidden, num_attention_heads=heads,
                                      num_hidden_layers=taps[-1]))
    text = CLIPTextModelWithProjection(CLIPTextConfig(num_hidden_layers=1))
    model = Pseg(vision, text, PsegHead(PsegConfig(taps=taps, vision_dim=hidden))).eval()
    dtype = torch.bfloat16 if a.precision == "bf16" else torch.float32
    model = model.to(dtype)
    encode = torch.compile(model.encode_image) if a.mode == "compile" else model.encode_image
    with torch.no_grad():
        for batch in a.batch:
            x = torch.randn(batch, 3, 224, 224, dtype=dtype)
            for _ in range(3):
                encode(x)
            times, end = [], time.time() + a.seconds
            while time.time() < end or len(times) < 3:
                begin = time.time()
                encode(x)
                times.append(time.time() - begin)
            ms = 1e3 * statistics.median(times)
            print(f"torch {torch.__version__} {a.precision} {a.mode}, batch {batch}: {ms:.1f} ms, "
                  f"{1e3 * batch / ms:.2f} images/s", flush=True)


if __name__ == "__main__":
    main()
