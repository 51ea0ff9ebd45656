"""Golden data of the image and text encoders. Tensors and cases: README.md."""

from __future__ import annotations

import copy
import os

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (CLIPConfig, CLIPTextConfig, CLIPTextModelWithProjection, Dinov2Config,
                          Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel,
                          ViTConfig, ViTModel)

import golden_fill as gf
from golden_io import Stages, save_folder, save_tokenizer

WORDS = ("the small red circle left of the blue square large green ring right above below striped "
         "triangle yellow star that is biggest a photo of the dog cat person in on behind with "
         "circle square red blue the the left right of of small large").split()
MERGES = 64
TEXT = {"hidden": 32, "heads": 2, "layers": 3, "mlp": 96, "positions": 16, "projection": 24}
SAMPLES = 64


def dino_config(hidden, heads, layers, image, patch=14, mlp_ratio=4, swiglu=False, **kw) -> dict:
    return {"model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_ratio": mlp_ratio,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": image, "num_channels": 3,
            "patch_size": patch, "qkv_bias": True, "layerscale_value": 1.0,
            "use_swiglu_ffn": swiglu, "apply_layernorm": True, "reshape_hidden_states": True,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": 0.0} | kw


def vit_config(hidden, heads, layers, image, patch, mlp) -> dict:
    return {"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": image, "num_channels": 3,
            "patch_size": patch, "qkv_bias": True, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0}


def vision_shapes(c: dict) -> dict:
    hidden, ratio = c["hidden_size"], c.get("mlp_ratio")
    mlp = c["intermediate_size"] if ratio is None else hidden * ratio
    swiglu = (int(mlp * 2 / 3) + 7) // 8 * 8 if c.get("use_swiglu_ffn") else 0
    return gf.vit_shapes("vit" if c["model_type"] == "vit" else "dinov2", hidden,
                         c["num_hidden_layers"], c["patch_size"],
                         c["image_size"] // c["patch_size"], mlp,
                         c.get("num_register_tokens", 0), swiglu, c.get("use_mask_token", True))


def vision_class(kind):
    return {"dinov2": (Dinov2Config, Dinov2Model), "vit": (ViTConfig, ViTModel),
            "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel)}[kind]


def check_loaded(info):
    # The pooler is ViT's own, no part of what PSEG uses; all else must be there and be used.
    bad = [k for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
           for k in info[what] if "pooler" not in str(k) and "classifier" not in str(k)]
    assert not bad, bad


def load_vision_pair(folder, kind):
    """The folder as float32 and float64 modules."""
    cls = vision_class(kind)[1]
    kw = {"add_pooling_layer": False} if kind == "vit" else {}
    m, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **kw)
    check_loaded(info)
    return m.eval(), copy.deepcopy(m).double().eval()


@torch.no_grad()
def vision_run(model, pixels, fine) -> dict:
    """Stages of one forward pass; every tensor [B, T, C]."""
    vit = isinstance(model, ViTModel)
    block = (model.layers if vit else model.encoder.layer)[0]
    out, hooks = {}, []

    def after(module, name):
        hooks.append(module.register_forward_hook(
            lambda m, a, y: out.__setitem__(name, y[0] if isinstance(y, tuple) else y)))

    def before(module, name):
        hooks.append(module.register_forward_pre_hook(
            lambda m, a: out.__setitem__(name, a[0])))

    if fine:
        norm1, norm2 = (block.layernorm_before, block.layernorm_after) if vit \
            else (block.norm1, block.norm2)
        att = block.attention
        after(norm1, "vision.block.0.norm1")
        for part in "qkv":
            after(getattr(att, part + "_proj"), f"vision.block.0.{part}")
        before(att.o_proj, "vision.block.0.heads")
        after(att.o_proj, "vision.block.0.attn_out")
        before(norm2, "vision.block.0.after_attn")
        after(norm2, "vision.block.0.norm2")
        last = block.mlp.down_proj if hasattr(block.mlp, "down_proj") else block.mlp.fc2
        before(last, "vision.block.0.mlp_hidden")
        after(last, "vision.block.0.mlp_out")
    kw = {"interpolate_pos_encoding": True} if vit else {}
    y = model(pixels.to(next(model.parameters()).dtype), output_hidden_states=True, **kw)
    for h in hooks:
        h.remove()
    for i, x in enumerate(y.hidden_states):
        out[f"vision.hidden.{i}"] = x
    assert len(y.hidden_states) == model.config.num_hidden_layers + 1
    out["vision.final_norm"] = y.last_hidden_state
    again = model.layernorm(y.hidden_states[-1])
    assert torch.allclose(again, y.last_hidden_state, atol=1e-6), "hidden_states[-1] is normed"
    return out


def vision_cases(stages, name, pair, cases):
    """cases: (batch, height, width, fine)."""
    single, exact = pair
    for b, h, w, fine in cases:
        case = f"{h}x{w}"
        pixels = gf.fill(name, f"{case}.pixel_values", (b, 3, h, w), 0.0, 1.75)
        stages.put(f"{case}.pixel_values", pixels)
        stages.put_pairs(f"{case}.", vision_run(exact, pixels, fine),
                         vision_run(single, pixels, fine))


# name -> (config, cases, how the folder is written). Some have an epsilon far from the usual, which
# alone would not show if it were not read.
VISION = {
    "dinov2_tiny": (dino_config(48, 3, 4, 70, mlp_ratio=2), [
        (1, 70, 70, False), (2, 42, 42, True), (1, 56, 84, False), (1, 56, 28, False),
        (1, 14, 140, False)], {}),
    "dinov2_reg_tiny": (dino_config(48, 3, 3, 70, mlp_ratio=2, num_register_tokens=4,
                                    layer_norm_eps=1e-3,
                                    model_type="dinov2_with_registers",
                                    architectures=["Dinov2WithRegistersModel"]), [
        (1, 70, 70, False), (2, 42, 42, True), (1, 28, 98, False)], {"shards": 2}),
    "dinov2_swiglu_tiny": (dino_config(48, 3, 2, 56, swiglu=True,
                                       architectures=["Dinov2ForImageClassification"]), [
        (1, 56, 56, True), (1, 28, 42, False)],
        {"prefix": "dinov2.", "dtype": torch.float16}),
    "vit_tiny_hf": (vit_config(48, 3, 3, 64, 16, 96), [
        (1, 64, 64, True), (2, 48, 48, False), (1, 48, 80, False)],
        {"prefix": "vit.", "dtype": torch.bfloat16}),
    "dinov2_d64": (dino_config(64, 1, 2, 56, mlp_ratio=2, use_mask_token=False), [
        (1, 56, 56, True), (1, 70, 42, False)], {"dtype": torch.float16}),
}


def make_vision(out):
    for name, (config, cases, how) in VISION.items():
        folder = os.path.join(out, "models", name)
        tensors = gf.fill_all(name, vision_shapes(config))
        prefix = how.get("prefix", "")
        tensors = {prefix + k: v for k, v in tensors.items()}
        if prefix:  # a classification checkpoint has a classifier too, which is not ours
            tensors["classifier.weight"] = torch.zeros(2, 8)
            tensors["classifier.bias"] = torch.zeros(2)
        save_folder(folder, config, tensors, how.get("dtype", torch.float32), how.get("shards", 1))
        stages = Stages()
        vision_cases(stages, name, load_vision_pair(folder, config["model_type"]), cases)
        stages.save(os.path.join(out, f"{name}.stages.safetensors"))


def text_config(vocab, eos, t=None) -> dict:
    t = t or TEXT
    return {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"],
            "vocab_size": vocab, "hidden_size": t["hidden"], "intermediate_size": t["mlp"],
            "projection_dim": t["projection"], "num_hidden_layers": t["layers"],
            "num_attention_heads": t["heads"], "max_position_embeddings": t["positions"],
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
            "bos_token_id": eos - 1, "eos_token_id": eos, "pad_token_id": eos}


def load_text_pair(folder):
    m, info = CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32,
                                                          output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return m.eval(), copy.deepcopy(m).double().eval()


@torch.no_grad()
def text_run(model, ids, fine) -> dict:
    """Stages of one sequence; ids [1, L]. Tensors [L, C], the last three [C]."""
    out, hooks = {}, []

    def keep(name, x):
        out[name] = (x[0] if isinstance(x, tuple) else x)[0]

    def after(module, name):
        hooks.append(module.register_forward_hook(lambda m, a, y: keep(name, y)))

    def before(module, name):
        hooks.append(module.register_forward_pre_hook(lambda m, a: keep(name, a[0])))

    tower = model.text_model
    after(tower.embeddings, "text.embeddings")
    for i, layer in enumerate(tower.encoder.layers):
        after(layer, f"text.layer.{i}")
    after(tower.final_layer_norm, "text.hidden")
    if fine:
        first = tower.encoder.layers[0]
        after(first.layer_norm1, "text.layer.0.norm1")
        for part in "qkv":
            after(getattr(first.self_attn, part + "_proj"), f"text.layer.0.{part}")
        before(first.self_attn.out_proj, "text.layer.0.heads")
        after(first.self_attn.out_proj, "text.layer.0.attn_out")
        after(first.layer_norm2, "text.layer.0.norm2")
        before(first.mlp.fc2, "text.layer.0.mlp_hidden")
        after(first.mlp.fc2, "text.layer.0.mlp_out")
    pooled = model.text_model(ids).pooler_output
    for h in hooks:
        h.remove()
    embeds = model(ids).text_embeds
    out |= {"text.eos_row": pooled[0], "text.embeds": embeds[0],
            "text.normalised": (embeds / embeds.norm(dim=-1, keepdim=True))[0]}
    return out


def text_cases(bos, eos) -> dict:
    """Sequences of ids: shortest, odd lengths, the longest, and one padded with EOS."""
    word = [7, 300, 515, 40, 530, 261, 519, 0, 511, 512, 83, 338, 527, 64]
    return {"len2": [bos, eos], "len3": [bos, 515, eos], "len7": [bos, *word[:5], eos],
            "len16": [bos, *word, eos], "padded": [bos, *word[3:7], *[eos] * 11]}


def put_text(stages, pair, cases):
    single, exact = pair
    for case, ids in cases.items():
        ids = torch.tensor([ids])
        stages.put(f"{case}.ids", ids[0])
        fine = case == "len7"
        stages.put_pairs(f"{case}.", text_run(exact, ids, fine), text_run(single, ids, fine))


def make_text(out):
    t = TEXT
    # clip_text_tiny: today's form. One token is added after EOS, as fine-tuners do: EOS is not the
    # largest id then, and must be found by its own id.
    folder = os.path.join(out, "models", "clip_text_tiny")
    vocab = save_tokenizer(folder, WORDS, MERGES, t["positions"])
    eos = vocab - 1
    shapes = gf.clip_text_shapes(t["hidden"], t["layers"], t["mlp"], vocab + 1, t["positions"],
                                 t["projection"])
    save_folder(folder, text_config(vocab + 1, eos), gf.fill_all("clip_text_tiny", shapes))
    stages = Stages()
    put_text(stages, load_text_pair(folder), text_cases(eos - 1, eos) | {
        "added": [eos - 1, 515, eos + 1, 40, eos]})
    stages.save(os.path.join(out, "clip_text_tiny.stages.safetensors"))

    # clip_legacy_tiny: the form of openai/clip-vit-base-patch16: a whole CLIPModel, nested config
    # with eos_token_id 2 and bos_token_id 0, an int64 position_ids tensor, and a vision tower.
    folder = os.path.join(out, "models", "clip_legacy_tiny")
    vocab = save_tokenizer(folder, WORDS, MERGES, t["positions"])
    eos = vocab - 1
    text = text_config(vocab, eos) | {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
                                           "layer_norm_eps": 1e-3}
    shapes = gf.clip_text_shapes(t["hidden"], t["layers"], t["mlp"], vocab, t["positions"],
                                 t["projection"])
    tensors = gf.fill_all("clip_legacy_tiny", shapes)
    tensors["text_model.embeddings.position_ids"] = torch.arange(t["positions"])[None]
    tensors["logit_scale"] = torch.tensor(4.6052)
    tensors["visual_projection.weight"] = torch.zeros(t["projection"], 16)
    tensors["vision_model.embeddings.class_embedding"] = torch.zeros(16)
    tensors["vision_model.post_layernorm.weight"] = torch.ones(16)
    save_folder(folder, {"model_type": "clip", "architectures": ["CLIPModel"],
                         "projection_dim": t["projection"], "text_config": text,
                         "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16,
                                           "num_hidden_layers": 1, "num_attention_heads": 1,
                                           "intermediate_size": 16, "image_size": 32,
                                           "patch_size": 16,
                                           "projection_dim": t["projection"]}}, tensors,
                torch.float16)
    assert CLIPConfig.from_pretrained(folder).text_config.eos_token_id == 2
    stages = Stages()
    put_text(stages, load_text_pair(folder), text_cases(eos - 1, eos))
    stages.save(os.path.join(out, "clip_legacy_tiny.stages.safetensors"))


# grid of the stored position embedding -> grids it is resampled to (rows, columns)
POS_GRIDS = {37: [(16, 16), (32, 32), (16, 20), (37, 37), (38, 37)],
             16: [(16, 16)], 4: [(2, 8), (4, 4), (7, 3)], 14: [(28, 28), (5, 14)]}
POS_CHANNELS = 3


@torch.no_grad()
def make_positions(out):
    stages = Stages()
    for variant, kind in (("plain", "dinov2"), ("registers", "dinov2_with_registers")):
        config_class, model_class = vision_class(kind)
        for side, grids in POS_GRIDS.items():
            m = model_class(config_class(hidden_size=POS_CHANNELS, num_hidden_layers=1,
                                         num_attention_heads=1, image_size=14 * side,
                                         patch_size=14))
            stored = gf.fill("pos_embed", f"{side}", (1, 1 + side * side, POS_CHANNELS), 0.0, 1.0)
            if variant == "plain":
                stages.put(f"stored.{side}", stored[0])
            m.embeddings.position_embeddings.data = stored
            for gh, gw in grids:
                tokens = torch.zeros(1, 1 + gh * gw, POS_CHANNELS)
                got = m.embeddings.interpolate_pos_encoding(tokens, 14 * gh, 14 * gw)
                stages.put(f"{variant}.{side}.{gh}x{gw}", got[0])
    stages.save(os.path.join(out, "pos_embed.stages.safetensors"))


def put_sampled(stages, name, exact, single):
    """What is kept of a large tensor: n, sum, sum of squares; SAMPLES values and where they are."""
    x = exact.detach().reshape(-1)
    probe = Stages()
    probe.put_pair(name, exact, single)
    if probe.worst > stages.worst:
        stages.worst, stages.worst_at = probe.worst, name
    at = np.random.default_rng(gf.fnv1a64(name)).integers(0, x.numel(), SAMPLES)
    at = torch.from_numpy(np.sort(at))
    stages.put(f"{name}.index", at)
    stages.put(f"{name}.values", x[at].float())
    stages.put(f"{name}.stats", torch.tensor([x.numel(), x.sum(), (x ** 2).sum()]).float())


def new_model(cls, config, tensors, **kw):
    """A model from a config and tensors under checkpoint names, as from_pretrained would load."""
    m, info = cls.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32,
                                  output_loading_info=True, **kw)
    check_loaded(info)
    return m.eval()


def make_full_encoders(out):
    """DINOv2-base at 224 and CLIP ViT-B/16's text tower; weights by formula, none stored."""
    stages = Stages()
    config = dino_config(768, 12, 12, 518)
    m = new_model(Dinov2Model, Dinov2Config(**config),
                  gf.fill_all("dinov2_base", vision_shapes(config)))
    count = sum(p.numel() for p in m.parameters())
    assert count == 86_580_480, count
    pixels = gf.fill("dinov2_base", "pixel_values", (1, 3, 224, 224), 0.0, 1.75)
    single = vision_run(m, pixels, False)
    exact = vision_run(m.double(), pixels, False)
    for k, v in exact.items():
        put_sampled(stages, k, v[0], single[k][0])
    stages.save(os.path.join(out, "dinov2_base.sampled.safetensors"))
    del m, single, exact

    stages = Stages()
    t = {"hidden": 512, "heads": 8, "layers": 12, "mlp": 2048, "positions": 77, "projection": 512}
    config = text_config(49408, 49407, t)
    shapes = gf.clip_text_shapes(512, 12, 2048, 49408, 77, 512)
    m = new_model(CLIPTextModelWithProjection, CLIPTextConfig(**config),
                  gf.fill_all("clip_base", shapes))
    count = sum(p.numel() for p in m.parameters())
    assert count == 63_428_096, count
    words = [320, 2361, 539, 320, 2368, 6531, 518, 12609, 1395, 269, 49405, 0, 255, 511]
    cases = {"short": [49406, *words[:6], 49407],
             "long": [49406, *(words * 6)[:75], 49407]}
    single = {c: text_run(m, torch.tensor([i]), False) for c, i in cases.items()}
    m = m.double()
    for case, ids in cases.items():
        stages.put(f"{case}.ids", torch.tensor(ids))
        for k, v in text_run(m, torch.tensor([ids]), False).items():
            put_sampled(stages, f"{case}.{k}", v, single[case][k])
    stages.save(os.path.join(out, "clip_base.sampled.safetensors"))


def pattern(height, width) -> torch.Tensor:
    """u8 [H, W, 3] by integer formula; README.md "The pattern"."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    r = (x * y // 32) % 256
    g = 255 - (x - y) % 256
    b = ((x ^ y) * 3 + 20 * ((x // 28 + y // 28) % 2)) % 256
    return torch.from_numpy(np.stack([r, g, b], -1).astype(np.uint8))


def timm_to_hf(src: dict) -> dict:
    out = {"embeddings.cls_token": src["cls_token"],
           "embeddings.position_embeddings": src["pos_embed"],
           "embeddings.patch_embeddings.projection.weight": src["patch_embed.proj.weight"],
           "embeddings.patch_embeddings.projection.bias": src["patch_embed.proj.bias"],
           "layernorm.weight": src["norm.weight"], "layernorm.bias": src["norm.bias"]}
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after",
             "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
             "mlp.fc2": "output.dense"}
    for i in range(12):
        b, e = f"blocks.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            for part, x in zip(("query", "key", "value"), src[f"{b}.attn.qkv.{kind}"].chunk(3)):
                out[f"{e}.attention.attention.{part}.{kind}"] = x
            for old, new in names.items():
                out[f"{e}.{new}.{kind}"] = src[f"{b}.{old}.{kind}"]
    return {k: v.float() for k, v in out.items()}


def make_real_vit(out, folder):
    """ViT-Tiny with real weights on the pattern, at its own size and at 320 x 256."""
    import json

    with open(os.path.join(folder, "config.json")) as f:
        given = json.load(f)
    config = vit_config(given["hidden_size"], given["num_attention_heads"],
                        given["num_hidden_layers"], given["image_size"], given["patch_size"],
                        given["intermediate_size"])
    config["layer_norm_eps"] = given["layer_norm_eps"]
    tensors = timm_to_hf(load_file(os.path.join(folder, "model.safetensors")))
    assert {k: tuple(v.shape) for k, v in tensors.items()} == vision_shapes(config)
    m = new_model(ViTModel, ViTConfig(**config), tensors, add_pooling_layer=False)
    runs = {}
    for exact in (False, True):
        m = m.double() if exact else m
        for h, w in ((224, 224), (256, 320)):
            x = pattern(h, w).permute(2, 0, 1)[None].double() if exact \
                else pattern(h, w).permute(2, 0, 1)[None].float()
            runs[h, w, exact] = vision_run(m, (x / 255 - 0.5) / 0.5, False)
    stages = Stages()
    for h, w in ((224, 224), (256, 320)):
        for k, v in runs[h, w, True].items():
            put_sampled(stages, f"{h}x{w}.{k}", v[0], runs[h, w, False][k][0])
        stages.put_pair(f"{h}x{w}.cls", runs[h, w, True]["vision.final_norm"][0, 0],
                        runs[h, w, False]["vision.final_norm"][0, 0])
    stages.save(os.path.join(out, "vit_tiny_real.sampled.safetensors"))
