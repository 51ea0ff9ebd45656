#!/usr/bin/env python3
"""An image encoder's folder with Hugging Face's names once more under Meta's, which are timm's too where
there are neither registers nor SwiGLU: query, key and value in one tensor, everything else renamed, no
number changed. Or under timm's, which calls SwiGLU's matrices as an MLP's, and the registers
otherwise, and then has the position of CLS in the CLS token. Standard library alone.

Usage: timm_names.py FROM TO [timm]

data/models/vit_tiny_timm is made so from data/models/vit_tiny_hf, whose numbers golden_encoders.py
draws."""
import json
import os
import re
import shutil
import struct
import sys

WHOLE = {"embeddings.cls_token": "cls_token", "embeddings.mask_token": "mask_token",
         "embeddings.position_embeddings": "pos_embed", "embeddings.register_tokens": "register_tokens",
         "embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm", "classifier": "head"}
PARTS = {"norm1": "norm1", "layernorm_before": "norm1", "attention.output.dense": "attn.proj",
         "layer_scale1.lambda1": "ls1.gamma", "norm2": "norm2", "layernorm_after": "norm2",
         "mlp.fc1": "mlp.fc1", "intermediate.dense": "mlp.fc1", "mlp.fc2": "mlp.fc2", "output.dense": "mlp.fc2",
         "mlp.weights_in": "mlp.w12", "mlp.weights_out": "mlp.w3", "layer_scale2.lambda1": "ls2.gamma"}
QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")


def read(path):
    """{name: (dtype, shape, bytes)}"""
    with open(path, "rb") as f:
        data = f.read()
    n, = struct.unpack_from("<Q", data)
    head = json.loads(data[8:8 + n])
    head.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for k, v in head.items()}


def write(path, tensors):
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in sorted(tensors.items()):
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            f.write(tensors[name][2])


def split(name):
    """A name and its .weight or .bias."""
    stem, dot, last = name.rpartition(".")
    return (stem, dot + last) if last in ("weight", "bias") else (name, "")


def as_timm(tensors):
    """Meta's names, and what timm's _convert_dinov2 makes of them."""
    out = {k.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): v for k, v in tensors.items()}
    if "register_tokens" in out:
        out["reg_token"] = out.pop("register_tokens")
        dtype, (one, n, width), data = out["pos_embed"]
        assert dtype == "F32"
        row = [a + b for a, b in zip(*(struct.unpack_from(f"<{width}f", x) for x in (out["cls_token"][2], data)))]
        out["cls_token"] = *out["cls_token"][:2], struct.pack(f"<{width}f", *row)
        out["pos_embed"] = dtype, [one, n - 1, width], data[4 * width:]
    out.pop("mask_token", None)
    return out


def renamed(tensors):
    tensors, out = {re.sub(r"^(vit|dinov2)\.", "", k): v for k, v in tensors.items()}, {}
    for name, (dtype, shape, data) in tensors.items():
        stem, kind = split(name)
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)", stem)
        if not block:
            out[WHOLE[stem] + kind] = dtype, shape, data
        elif block[2] in PARTS:
            out[f"blocks.{block[1]}.{PARTS[block[2]]}{kind}"] = dtype, shape, data
        elif block[2] == QKV[0]:
            three = [tensors[name.replace(QKV[0], part)] for part in QKV]
            out[f"blocks.{block[1]}.attn.qkv{kind}"] = dtype, [3 * shape[0], *shape[1:]], b"".join(t[2] for t in three)
        else:
            assert block[2] in QKV, name
    return out


def convert(source, to, is_timm=False):
    """source's weights, in one file or several, and what stands beside them."""
    os.makedirs(to, exist_ok=True)
    for name in sorted(os.listdir(source)):
        if ".safetensors" not in name:
            shutil.copy(os.path.join(source, name), os.path.join(to, name))
    files = [os.path.join(source, name) for name in sorted(os.listdir(source)) if name.endswith(".safetensors")]
    tensors = renamed({k: v for path in files for k, v in read(path).items()})
    write(os.path.join(to, "model.safetensors"), as_timm(tensors) if is_timm else tensors)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], sys.argv[3:] == ["timm"])
