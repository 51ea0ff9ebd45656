"""What int8 would do to the masks: the model in the box with simulated W8A8, on scenes.

    ENV/bin/python tests/bench/int8_fidelity.py --scenes BUILD/bin/pseg-scenes --model deploy/models/scenes

Weights are rounded to 8 bits by output channel, activations by token (row) as they come, both
symmetric, sums exact: what a kernel with int32 sums gives, for every Linear and Conv2d of a part.
Prints, for each part alone and for several together, the mean and worst IoU of its masks with
those of float32, pixels changed, and the mIoU with the truth. bfloat16 (the same places, rounded)
stands beside it as a yardstick. Environment: tests/bench/requirements.txt.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from eval_scenes import overlap, read_scenes  # noqa: E402
from pseg_reference import load_model, load_tokenizer, tokenize  # noqa: E402


def round8(x, dims):
    top = x.abs().amax(dim=dims, keepdim=True).clamp_min(1e-12) / 127
    return (x / top).round() * top


def part_of(name):
    if name.startswith("vision"):
        if "patch_embeddings" in name:
            return "patches"
        return "vision mlp" if "mlp" in name or "intermediate" in name or \
            name.endswith("layer.output.dense") or ".output.dense" in name and \
            "attention" not in name else "vision attention"
    if name.startswith("text"):
        return "text"
    if ".neck." in name:
        return "neck"
    return "decoder"


def quantise(model, parts, kind):
    """Hooks and rounded weights for the modules of `parts`; returns what undoes it."""
    undo = []
    for name, m in model.named_modules():
        if not isinstance(m, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            continue
        if part_of(name) not in parts:
            continue
        is_linear, old = isinstance(m, torch.nn.Linear), m.weight.data
        if kind == "bf16":
            m.weight.data = old.bfloat16().float()
            hook = m.register_forward_pre_hook(lambda _, x: (x[0].bfloat16().float(), *x[1:]))
        else:
            out_dim = 1 if isinstance(m, torch.nn.ConvTranspose2d) else 0
            m.weight.data = round8(old, [d for d in range(old.dim()) if d != out_dim])
            dims = (-1,) if is_linear else (1,)  # a token's channels
            hook = m.register_forward_pre_hook(
                lambda _, x, d=dims: (round8(x[0], d), *x[1:]))
        undo.append((m, old, hook))
    return undo


def masks_of(model, batches):
    out = []
    with torch.no_grad():
        for rgb, ids, image_of, _ in batches:
            logits, _ = model(rgb, ids, image_of)
            out.append(F.interpolate(logits[:, None].float(), size=rgb.shape[2:], mode="bilinear",
                                     align_corners=False)[:, 0] > 0)
    return torch.cat(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--scenes", required=True)
    ap.add_argument("--model", required=True)
    ap.add_argument("--seed", type=int, default=5000)
    ap.add_argument("--count", type=int, default=200)
    a = ap.parse_args()
    model, tok = load_model(a.model), load_tokenizer(a.model)
    limit, cfg = model.text.config.max_position_embeddings, model.cfg
    mean = torch.tensor(cfg.image_mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(cfg.image_std).view(1, 3, 1, 1) * 255
    batches, held = [], []
    for s in read_scenes(a.scenes, a.seed, a.count, cfg.image_size[0]):
        if s.phrases:
            held.append(s)
        if len(held) < 8 and s.seed != a.seed + a.count - 1:
            continue
        rgb = torch.from_numpy(np.stack([h.rgb for h in held])).permute(0, 3, 1, 2).float()
        ids = tokenize(tok, [p[0] for h in held for p in h.phrases], limit)
        image_of = torch.tensor([k for k, h in enumerate(held) for _ in h.phrases])
        truth = torch.stack([torch.from_numpy(h.ids == p[1]) for h in held for p in h.phrases])
        batches.append(((rgb - mean) / std, ids, image_of, truth))
        held = []
    truth = torch.cat([b[3] for b in batches])
    plain = masks_of(model, batches)
    parts = ["patches", "vision attention", "vision mlp", "text", "neck", "decoder"]
    trials = [("float32", [], "int8")] + [(p, [p], "int8") for p in parts] + [
        ("image encoder", parts[:3], "int8"), ("image encoder and neck", parts[:3] + ["neck"], "int8"),
        ("image encoder but patches", parts[1:3], "int8"),
        ("encoders", parts[:4], "int8"), ("all", parts, "int8"), ("all, bfloat16", parts, "bf16")]
    print(f"{len(truth)} masks of {a.count} scenes; IoU with float32: mean, worst; pixels changed; "
          "mIoU with the truth")
    for name, chosen, kind in trials:
        undo = quantise(model, chosen, kind)
        got = masks_of(model, batches)
        for m, old, hook in undo:
            m.weight.data = old
            hook.remove()
        ious = [overlap(x, y) if bool((x | y).any()) else 1.0 for x, y in zip(got, plain)]
        true = np.mean([overlap(x, y) for x, y in zip(got, truth)])
        print(f"| {name} ({len(undo)} layers) | {np.mean(ious):.4f} | {min(ious):.3f} | "
              f"{100 * float((got != plain).float().mean()):.4f} % | {true:.4f} |", flush=True)


if __name__ == "__main__":
    main()
