"""Weights by formula, so that C can make the same ones without a file; and tensor lists.

The formula is a contract with tests/golden/*.c; README.md states it in full ("Weights by formula").
Tensor lists are written out by hand from the published layouts, so that a change in what
transformers loads or saves is noticed.
"""

from __future__ import annotations

import math

import numpy as np
import torch

EMBEDDINGS = ("cls_token", "mask_token", "position_embeddings", "register_tokens", "pos_embed",
              "iou_token", "iou_token.weight", "mask_tokens.weight", "token_embedding.weight",
              "position_embedding.weight", "positional_embedding", "class_embedding",
              "_embed.weight")
TRANSPOSED = ("upscale_conv1.weight", "upscale_conv2.weight")
SHARPENED = ("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")


def fnv1a64(text: str) -> int:
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def unit(name: str, n: int) -> np.ndarray:
    """n values k / 2^23 - 1 with k in 0..2^24-1, float64 (exact): splitmix64 of key + index."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name)) + np.arange(n, dtype=np.uint64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 8388608.0 - 1.0


def scale_of(name: str, shape) -> tuple[float, float]:
    """(centre c, half width a) of a tensor: values are uniform in c - a .. c + a."""
    if name.endswith(EMBEDDINGS):
        return 0.0, 1.0
    if name.endswith("lambda1"):
        return 0.5, 0.25
    if name.endswith(".bias"):
        return 0.0, 0.125
    if len(shape) == 1:
        return 1.0, 0.25
    up = name.endswith(TRANSPOSED) or ".upsample." in name
    fan_in = shape[0] if up else math.prod(shape[1:])
    gain = 1.5 if name.endswith(SHARPENED) else 1.0
    return 0.0, float(np.float32(gain * math.sqrt(3.0 / fan_in)))


def fill(model: str, name: str, shape, c: float | None = None, a: float | None = None):
    """fp32 tensor: float32(c + a * unit(model + ":" + name))."""
    if a is None:
        c, a = scale_of(name, shape)
    v = unit(f"{model}:{name}", math.prod(shape)) * a + c
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def fill_all(model: str, shapes: dict) -> dict:
    return {k: fill(model, k, s) for k, s in shapes.items()}


def linear(name, cout, cin) -> dict:
    return {f"{name}.weight": (cout, cin), f"{name}.bias": (cout,)}


def norm(name, c) -> dict:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def vit_shapes(kind, hidden, layers, patch, grid, mlp, registers=0, swiglu=0, mask_token=True):
    """kind: dinov2 or vit. grid: side of the square position grid. mlp, swiglu: hidden widths."""
    out = {"embeddings.cls_token": (1, 1, hidden),
           "embeddings.position_embeddings": (1, 1 + grid * grid, hidden),
           "embeddings.patch_embeddings.projection.weight": (hidden, 3, patch, patch),
           "embeddings.patch_embeddings.projection.bias": (hidden,)}
    if kind == "dinov2" and mask_token:
        out["embeddings.mask_token"] = (1, hidden)
    if registers:
        out["embeddings.register_tokens"] = (1, registers, hidden)
    for i in range(layers):
        p = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            out |= linear(f"{p}.attention.attention.{part}", hidden, hidden)
        out |= linear(f"{p}.attention.output.dense", hidden, hidden)
        if kind == "vit":
            out |= norm(f"{p}.layernorm_before", hidden) | norm(f"{p}.layernorm_after", hidden)
            out |= linear(f"{p}.intermediate.dense", mlp, hidden)
            out |= linear(f"{p}.output.dense", hidden, mlp)
            continue
        out |= norm(f"{p}.norm1", hidden) | norm(f"{p}.norm2", hidden)
        out |= {f"{p}.layer_scale1.lambda1": (hidden,), f"{p}.layer_scale2.lambda1": (hidden,)}
        if swiglu:
            out |= linear(f"{p}.mlp.weights_in", 2 * swiglu, hidden)
            out |= linear(f"{p}.mlp.weights_out", hidden, swiglu)
        else:
            out |= linear(f"{p}.mlp.fc1", mlp, hidden) | linear(f"{p}.mlp.fc2", hidden, mlp)
    return out | norm("layernorm", hidden)


def clip_text_shapes(hidden, layers, mlp, vocab, positions, projection) -> dict:
    e = "text_model.embeddings"
    out = {f"{e}.token_embedding.weight": (vocab, hidden),
           f"{e}.position_embedding.weight": (positions, hidden)}
    for i in range(layers):
        p = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= linear(f"{p}.self_attn.{part}", hidden, hidden)
        out |= norm(f"{p}.layer_norm1", hidden) | norm(f"{p}.layer_norm2", hidden)
        out |= linear(f"{p}.mlp.fc1", mlp, hidden) | linear(f"{p}.mlp.fc2", hidden, mlp)
    out |= norm("text_model.final_layer_norm", hidden)
    return out | {"text_projection.weight": (projection, hidden)}


def two_way_shapes(prefix, layers, dim, inner, mlp) -> dict:
    """Two-way blocks and the final attention under SAM's names. inner: width of cross attention."""
    out = {}

    def attention(name, width):
        for part in ("q_proj", "k_proj", "v_proj"):
            out.update(linear(f"{name}.{part}", width, dim))
        out.update(linear(f"{name}.out_proj", dim, width))

    for i in range(layers):
        p = f"{prefix}layers.{i}"
        attention(f"{p}.self_attn", dim)
        attention(f"{p}.cross_attn_token_to_image", inner)
        attention(f"{p}.cross_attn_image_to_token", inner)
        for k in range(1, 5):
            out.update(norm(f"{p}.layer_norm{k}", dim))
        out.update(linear(f"{p}.mlp.lin1", mlp, dim) | linear(f"{p}.mlp.lin2", dim, mlp))
    attention(f"{prefix}final_attn_token_to_image", inner)
    return out | norm(f"{prefix}layer_norm_final_attn", dim)


def mlp3_shapes(name, dim, cout) -> dict:
    return linear(f"{name}.proj_in", dim, dim) | linear(f"{name}.layers.0", dim, dim) \
        | linear(f"{name}.proj_out", cout, dim)


def head_shapes(cfg) -> dict:
    """pseg.safetensors of a PsegConfig."""
    d, out = cfg.dim, {}

    def conv(name, cin, k):
        out[f"{name}.conv.weight"], out[f"{name}.conv.bias"] = (d, cin, k, k), (d,)
        out.update(norm(f"{name}.norm", d))

    for i in range(len(cfg.taps)):
        conv(f"neck.lateral.{i}", cfg.vision_dim, 1)
        conv(f"neck.smooth.{i}", d, 3)
    conv("neck.fuse", d, 3)
    out |= linear("text_proj", d, cfg.text_dim)
    if cfg.text_mode == "tokens":
        out |= linear("text_token_proj", d, cfg.text_hidden)
    out |= {"decoder.pos_embed": (1, d, *cfg.grid), "decoder.iou_token": (1, d),
            "decoder.mask_token": (1, d)}
    out |= two_way_shapes("decoder.", cfg.depth, d, d // cfg.downsample, cfg.mlp_dim)
    chans = (d, *cfg.upsample)
    for i in range(len(cfg.upsample)):
        p = f"decoder.upsample.{i}"
        out |= {f"{p}.conv.weight": (chans[i], chans[i + 1], 2, 2),
                f"{p}.conv.bias": (chans[i + 1],)}
        if i < len(cfg.upsample) - 1:
            out |= norm(f"{p}.norm", chans[i + 1])
    return out | mlp3_shapes("decoder.mask_mlp", d, chans[-1]) \
        | mlp3_shapes("decoder.iou_head", d, 1)


def sam_decoder_shapes(dim, mlp, mask_tokens) -> dict:
    p = "mask_decoder."
    out = {f"{p}iou_token.weight": (1, dim), f"{p}mask_tokens.weight": (mask_tokens, dim)}
    out |= two_way_shapes(f"{p}transformer.", 2, dim, dim // 2, mlp)
    out |= {f"{p}upscale_conv1.weight": (dim, dim // 4, 2, 2),
            f"{p}upscale_conv1.bias": (dim // 4,),
            f"{p}upscale_conv2.weight": (dim // 4, dim // 8, 2, 2),
            f"{p}upscale_conv2.bias": (dim // 8,)} | norm(f"{p}upscale_layer_norm", dim // 4)
    for i in range(mask_tokens):
        out |= mlp3_shapes(f"{p}output_hypernetworks_mlps.{i}", dim, dim // 8)
    return out | mlp3_shapes(f"{p}iou_prediction_head", dim, mask_tokens)
