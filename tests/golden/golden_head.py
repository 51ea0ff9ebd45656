"""Golden data of whole PSEG folders, of the head at full shape, of a decoder started from SAM, and
of preprocessing. Tensors and cases: README.md."""

from __future__ import annotations

import copy
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (CLIPTokenizer, SamConfig, SamMaskDecoderConfig, SamModel,
                          SamPromptEncoderConfig, SamVisionConfig)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.sam.modeling_sam import SamMaskDecoder

import golden_encoders as ge
import golden_fill as gf
import pseg_reference as ref
from golden_io import Stages, metadata, save_folder, save_tokenizer, write_json

PHOTOS = {"ellipse.png": (45, 37), "stripes.png": (30, 52)}  # width, height
PHRASES = ("the small red circle", "Café 7, left of the BLUE dog",
           "the large blue striped square to the left of the green ring above the yellow star")
OUTSIDE = -100.0  # in photo_logits where the grid does not reach


def photo(width, height) -> np.ndarray:
    """u8 [H, W, 3]: a gradient, an ellipse, stripes and noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = gf.unit(f"photo:{width}x{height}", width * height * 3).reshape(height, width, 3)
    out = np.stack([200 * x / width + 20, 160 - 120 * y / height, 90 + 60 * (x + y) / width], -1)
    u, v = (x - 0.4 * width) / (0.3 * width), (y - 0.55 * height) / (0.25 * height)
    out[u * u + v * v < 1] = (220, 40, 30)
    out[(x // 4 + y // 3) % 7 == 0] = (30, 60, 200)
    return np.clip(out + 24 * noise, 0, 255).astype(np.uint8)


def save_photos(out):
    folder = os.path.join(out, "images")
    os.makedirs(folder, exist_ok=True)
    for name, (w, h) in PHOTOS.items():
        Image.fromarray(photo(w, h)).save(os.path.join(folder, name), optimize=True)


def open_photo(out, name):
    return Image.open(os.path.join(out, "images", name)).convert("RGB")


def fit_of(size, cfg):
    """How a photo of (width, height) meets the model's canvas: resized size, offset on canvas."""
    (pw, ph), (h, w) = size, cfg.image_size
    if cfg.preprocess == "squash":
        return w, h, 0, 0
    if cfg.preprocess == "letterbox":
        s = min(w / pw, h / ph)
        nw, nh = max(1, min(w, round(pw * s))), max(1, min(h, round(ph * s)))
        return nw, nh, (w - nw) // 2, (h - nh) // 2
    edge = 256 * h // 224
    short, long = sorted(size)
    other = int(edge * long / short)
    nw, nh = (edge, other) if pw <= ph else (other, edge)
    return nw, nh, -((nw - w) // 2), -((nh - h) // 2)


def rect_of(size, cfg):
    """The rectangle of the photo, in its pixels, that the model's canvas covers: x0, y0, x1, y1."""
    (pw, ph), (h, w) = size, cfg.image_size
    nw, nh, left, top = fit_of(size, cfg)
    return (-left * pw / nw, -top * ph / nh, (w - left) * pw / nw, (h - top) * ph / nh)


def enlarge(logits, size, rect):
    """logits [gh, gw] -> [height, width] of the photo, bilinear, half-pixel centres, clamped."""
    (pw, ph), (x0, y0, x1, y1) = size, rect
    gh, gw = logits.shape

    def axis(n, grid, a, b):
        c = torch.arange(n, dtype=torch.float64) + 0.5
        u = ((c - a) / (b - a) * grid - 0.5).clamp(0, grid - 1)
        low = u.floor().long()
        return low, (low + 1).clamp(max=grid - 1), u - low, (c >= a) & (c <= b)

    xl, xh, xw, xin = axis(pw, gw, x0, x1)
    yl, yh, yw, yin = axis(ph, gh, y0, y1)
    rows = logits[yl] * (1 - yw)[:, None] + logits[yh] * yw[:, None]
    out = rows[:, xl] * (1 - xw) + rows[:, xh] * xw
    return torch.where(yin[:, None] & xin[None, :], out, torch.full_like(out, OUTSIDE))


def check_enlarge():
    """enlarge() over the whole photo is PyTorch's interpolate."""
    x = torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for pw, ph in ((45, 37), (5, 4)):
        want = F.interpolate(x[None, None], size=(ph, pw), mode="bilinear", align_corners=False)
        got = enlarge(x, (pw, ph), (0, 0, pw, ph))
        assert (got - want[0, 0]).abs().max() < 1e-12


# draw: which random head, taken so that masks are neither empty nor full (see check_masks).
MODELS = {
    "pseg_pooled": {
        "vision": ge.dino_config(32, 2, 4, 70, mlp_ratio=2), "legacy_text": False, "draw": 12,
        "types": (torch.float16, torch.float16, torch.float32),
        "head": ref.PsegConfig(
            taps=(1, 2, 3, 4), tap_norm="none", dim=32, heads=4, depth=3, mlp_dim=64, downsample=2,
            gn_groups=8, grid=(4, 4), upsample=(16, 8, 8), text_mode="pooled", vision_dim=32,
            text_dim=24, text_hidden=32, image_size=(56, 56), patch=14, preprocess="squash")},
    "pseg_tokens": {
        "vision": ge.dino_config(32, 2, 3, 70, mlp_ratio=2, num_register_tokens=4,
                                 model_type="dinov2_with_registers",
                                 architectures=["Dinov2WithRegistersModel"]),
        "legacy_text": False, "draw": 16, "types": (torch.float16,) * 3,
        "head": ref.PsegConfig(
            taps=(1, 2, 3, 3), tap_norm="final_ln", dim=32, heads=4, depth=3, mlp_dim=48,
            downsample=1, gn_groups=8, gn_eps=1e-3, grid=(5, 3), upsample=(16, 8),
            upsample_eps=2e-3, layer_norm_eps=5e-4, final_layer_norm_eps=4e-3,
            text_mode="tokens", vision_dim=32, text_dim=24, text_hidden=32, image_size=(70, 42),
            patch=14, preprocess="letterbox")},
    "pseg_crop": {
        "vision": ge.vit_config(32, 1, 4, 64, 16, 64) | {"layer_norm_eps": 1e-3}, "legacy_text": True, "draw": 21,
        "types": (torch.bfloat16,) * 3,
        "head": ref.PsegConfig(
            taps=(1, 2, 3, 4), tap_norm="final_ln", dim=24, heads=3, depth=2, mlp_dim=40,
            downsample=2, gn_groups=8, grid=(4, 4), upsample=(16, 8, 4), text_mode="tokens",
            vision_dim=32, text_dim=24, text_hidden=32, image_size=(64, 64), patch=16,
            preprocess="centre_crop", image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))},
}


def save_pseg(out, name, m):
    cfg, t, draw = m["head"], ge.TEXT, m["draw"]
    folder = os.path.join(out, "models", name)
    save_folder(os.path.join(folder, "vision"), m["vision"],
                gf.fill_all(f"{name}/vision", ge.vision_shapes(m["vision"])), m["types"][0])
    h, w = cfg.image_size
    crop = cfg.preprocess == "centre_crop"
    write_json(os.path.join(folder, "vision", "preprocessor_config.json"), {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "resample": 3,
        "size": {"shortest_edge": 256 * h // 224} if crop else {"height": h, "width": w},
        "do_center_crop": crop, "crop_size": {"height": h, "width": w}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(cfg.image_mean),
        "image_std": list(cfg.image_std)})

    text = os.path.join(folder, "text")
    vocab = save_tokenizer(text, ge.WORDS, ge.MERGES, t["positions"])
    config = ge.text_config(vocab, vocab - 1)
    if m["legacy_text"]:
        config |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    shapes = gf.clip_text_shapes(t["hidden"], t["layers"], t["mlp"], vocab, t["positions"],
                                 t["projection"])
    save_folder(text, config, gf.fill_all(f"{name}/text", shapes), m["types"][1])

    tensors = {k: v.to(m["types"][2])
               for k, v in gf.fill_all(f"{name}/head{draw}", gf.head_shapes(cfg)).items()}
    save_file(tensors, os.path.join(folder, "pseg.safetensors"), metadata() | cfg.to_metadata())
    write_json(os.path.join(folder, "pseg.json"), {
        "name": name, "description": "Random weights, for tests.", "vision": "vision",
        "text": "text", "decoder": "pseg.safetensors"})
    return folder


@torch.no_grad()
def image_run(model, pixels):
    trace, hooks = {}, []
    for i, m in enumerate(model.head.neck.lateral):
        hooks.append(m.register_forward_hook(
            lambda mod, a, y, i=i: trace.__setitem__(f"neck.lateral.{i}", y.clone())))
    feat = model.encode_image(pixels.to(model.head.text_proj.weight.dtype), trace)
    for h in hooks:
        h.remove()
    return feat, {k: v[0] for k, v in trace.items()}


@torch.no_grad()
def phrase_run(model, ids):
    trace = {}
    prompt, mask = model.encode_text(ids, trace)
    assert mask is None
    return prompt, {k: v[0] for k, v in trace.items()}


@torch.no_grad()
def pair_run(model, feat, prompt, size, rect):
    trace = {}
    logits, iou = model.head.decoder(feat, prompt, None, trace)
    out = {k: v[0] for k, v in trace.items()}
    out["iou_logit"], out["iou"] = iou, torch.sigmoid(iou)
    # Enlarging is arithmetic on few numbers; done in double for both, from either's logits.
    out["photo_logits"] = enlarge(logits[0].double(), size, rect).to(logits.dtype)
    return out


def make_pseg(out):
    check_enlarge()
    check_against_sam()
    save_photos(out)
    for name, m in MODELS.items():
        folder, cfg = save_pseg(out, name, m), m["head"]
        single = ref.load_model(folder)
        assert {k: tuple(v.shape) for k, v in single.head.state_dict().items()} \
            == gf.head_shapes(cfg)
        exact = copy.deepcopy(single).double()
        tokenizer = CLIPTokenizer.from_pretrained(os.path.join(folder, "text"))
        stages, prompts, masks = Stages(), {}, {}
        for j, phrase in enumerate(PHRASES):
            ids = tokenizer(phrase, truncation=True, max_length=ge.TEXT["positions"])["input_ids"]
            ids = torch.tensor([ids])
            stages.put(f"phrase.{j}.ids", ids[0])
            pe, te = phrase_run(exact, ids)
            ps, ts = phrase_run(single, ids)
            stages.put_pairs(f"phrase.{j}.", te, ts)
            prompts[j] = pe, ps
        for k, file in enumerate(PHOTOS):
            img = open_photo(out, file)
            rect = rect_of(img.size, cfg)
            pixels = ref.preprocess(img, cfg)
            stages.put(f"photo.{k}.pixel_values", pixels[0])
            stages.put(f"photo.{k}.rect", torch.tensor(rect, dtype=torch.float64).float())
            fe, te = image_run(exact, pixels)
            fs, ts = image_run(single, pixels)
            keep = [n for n in te if k == 0 or n.startswith("vision.tap") or n == "neck.fuse"]
            for n in keep:
                stages.put_pair(f"photo.{k}.{n}", te[n], ts[n])
            for j in prompts:
                te = pair_run(exact, fe, prompts[j][0], img.size, rect)
                ts = pair_run(single, fs, prompts[j][1], img.size, rect)
                last = ("mask_logits", "iou_logit", "iou", "photo_logits")
                for n in te:
                    if n in last or (k == 0 and j == 1) or \
                            (k == 0 and not n.startswith("decoder.upsample")):
                        stages.put_pair(f"pair.{k}.{j}.{n}", te[n], ts[n])
                mask = te["photo_logits"] > 0
                stages.put(f"pair.{k}.{j}.mask", mask.to(torch.uint8))
                masks[k, j] = mask
        check_masks(name, masks)
        path = os.path.join(out, f"{name}.stages.safetensors")
        extra = {f"phrase.{j}": p for j, p in enumerate(PHRASES)} \
            | {f"photo.{k}": f"images/{f}" for k, f in enumerate(PHOTOS)}
        stages.save(path, extra)


def check_masks(name, masks):
    """No mask is trivial, and both the photo and the phrase decide it."""
    for key, m in masks.items():
        share = m.double().mean().item()
        assert 0.1 < share < 0.9, f"{name} {key}: {share:.3f} of the photo is mask"
    for k in {k for k, _ in masks}:
        a, b = masks[k, 0], masks[k, 2]
        assert (a != b).double().mean() > 0.1, f"{name}: photo {k}'s mask ignores the phrase"


@torch.no_grad()
def check_against_sam():
    """With one mask token and SAM's upsampler, PSEG's decoder is SAM's mask decoder, exactly."""
    d, heads, mlp = 32, 4, 64
    sam = SamMaskDecoder(SamMaskDecoderConfig(
        hidden_size=d, num_attention_heads=heads, mlp_dim=mlp, num_hidden_layers=3,
        num_multimask_outputs=0, iou_head_hidden_dim=d)).eval()
    sam.config._attn_implementation = "sdpa"
    cfg = ref.PsegConfig(dim=d, heads=heads, depth=3, mlp_dim=mlp, gn_groups=8, grid=(5, 3),
                         upsample=(d // 4, d // 8), vision_dim=8, text_dim=8, text_hidden=8)
    head = ref.PsegHead(cfg)
    head.load_state_dict(gf.fill_all("sam_check", gf.head_shapes(cfg)))
    dec, own = head.decoder, dict(head.decoder.state_dict())
    rename = {"iou_token": "iou_token.weight", "mask_token": "mask_tokens.weight",
              "upsample.0.conv.": "upscale_conv1.", "upsample.0.norm.": "upscale_layer_norm.",
              "upsample.1.conv.": "upscale_conv2.", "mask_mlp.": "output_hypernetworks_mlps.0.",
              "iou_head.": "iou_prediction_head.", "layers.": "transformer.layers.",
              "final_attn": "transformer.final_attn",
              "layer_norm_final": "transformer.layer_norm_final"}
    own.pop("pos_embed")
    named = {}
    for k, v in own.items():
        old = next(o for o in rename if k.startswith(o))
        named[rename[old] + k[len(old):]] = v
    sam.load_state_dict(named)
    sam, dec = sam.double(), dec.double()
    feat = gf.fill("sam_check", "feat", (2, d, 5, 3), 0.0, 1.75).double()
    prompt = gf.fill("sam_check", "prompt", (2, 4, d), 0.0, 1.75).double()
    want, iou = sam(image_embeddings=feat, image_positional_embeddings=dec.pos_embed.expand(
        2, -1, -1, -1), sparse_prompt_embeddings=prompt[:, None],
        dense_prompt_embeddings=torch.zeros_like(feat), multimask_output=False)
    logits, guess = dec(feat, prompt)
    assert (logits - want[:, 0, 0]).abs().max() < 1e-10 * want.abs().max(), "mask logits"
    assert (guess - iou[:, 0, 0]).abs().max() < 1e-10, "predicted IoU"


@torch.no_grad()
def make_full_head(out):
    """PSEG-1 at its reference shape; weights and inputs by formula, none stored."""
    cfg = ref.PsegConfig()
    single = ref.PsegHead(cfg).eval()
    tensors = gf.fill_all("pseg1", gf.head_shapes(cfg))
    single.load_state_dict(tensors)
    count = sum(v.numel() for v in tensors.values())
    assert count == ref.HEAD_PARAMS_BASE, count
    exact = copy.deepcopy(single).double()
    taps = [gf.fill("pseg1", f"input.tap.{i}", (1, cfg.vision_dim, *cfg.grid), 0.0, 1.75)
            for i in range(4)]
    text = gf.fill("pseg1", "input.text_embeds", (1, cfg.text_dim), 0.0, 1.0)
    runs = {}
    for m in (single, exact):
        dtype, trace = m.text_proj.weight.dtype, {}
        e = text.to(dtype)
        pooled = m.text_proj(e / e.norm(dim=-1, keepdim=True))
        trace["text.pooled"] = pooled
        feat = m.neck([x.to(dtype) for x in taps], trace)
        m.decoder(feat, pooled[:, None], None, trace)
        runs[dtype] = trace
    stages = Stages()
    for k, v in runs[torch.float64].items():
        ge.put_sampled(stages, k, v[0], runs[torch.float32][k][0])
    stages.save(os.path.join(out, "pseg1.sampled.safetensors"))


SAM_DIM, SAM_HEADS, SAM_MLP = 16, 2, 32
SAM_HEAD = ref.PsegConfig(dim=SAM_DIM, heads=SAM_HEADS, depth=3, mlp_dim=SAM_MLP, gn_groups=4,
                          grid=(4, 4), upsample=(8, 4, 2), vision_dim=8, text_dim=8, text_hidden=8,
                          image_size=(56, 56), taps=(1, 2, 3, 4))


def start_from_sam(sam: dict) -> dict:
    """Head tensors that SAM's decoder gives; layers.2 only where the third block is a copy."""
    p, out = "mask_decoder.", {}
    for k, v in sam.items():
        if k.startswith(p + "transformer."):
            out["decoder." + k[len(p + "transformer."):]] = v
            if ".layers.1." in k:
                small = ".out_proj." in k or ".mlp.lin2." in k
                name = k[len(p + "transformer."):].replace("layers.1.", "layers.2.")
                out["decoder." + name] = v * 0.1 if small else v
    out["decoder.iou_token"] = sam[p + "iou_token.weight"]
    out["decoder.mask_token"] = sam[p + "mask_tokens.weight"][:1]
    for part in ("proj_in", "layers.0", "proj_out"):
        for kind in ("weight", "bias"):
            t = f"{part}.{kind}"
            out[f"decoder.mask_mlp.{t}"] = sam[f"{p}output_hypernetworks_mlps.0.{t}"]
            v = sam[f"{p}iou_prediction_head.{t}"]
            out[f"decoder.iou_head.{t}"] = v[:1] if part == "proj_out" else v
    last = len(SAM_HEAD.upsample) - 1
    for kind in ("weight", "bias"):
        out[f"decoder.upsample.{last}.conv.{kind}"] = sam[f"{p}upscale_conv2.{kind}"]
    return out


def make_sam(out):
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16, output_channels=SAM_DIM, num_hidden_layers=1, num_attention_heads=2,
            image_size=64, patch_size=16, mlp_dim=32, global_attn_indexes=[0], window_size=0,
            num_pos_feats=SAM_DIM // 2),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=SAM_DIM, image_size=64,
                                                     patch_size=16, mask_input_channels=4),
        mask_decoder_config=SamMaskDecoderConfig(hidden_size=SAM_DIM, mlp_dim=SAM_MLP,
                                                 num_attention_heads=SAM_HEADS,
                                                 iou_head_hidden_dim=SAM_DIM))
    folder = os.path.join(out, "models", "sam_tiny")
    model = SamModel(config)
    model.save_pretrained(folder)  # for config.json, and for the names that SamModel really has
    path = os.path.join(folder, "model.safetensors")
    names = {k: tuple(v.shape) for k, v in load_file(path).items()}
    decoder = gf.sam_decoder_shapes(SAM_DIM, SAM_MLP, 4)
    assert decoder == {k: s for k, s in names.items() if k.startswith("mask_decoder.")}
    # Of the rest only a few are kept, for the reader to ignore.
    shapes = decoder | {k: names[k] for k in ("shared_image_embedding.positional_embedding",
                                              "prompt_encoder.no_mask_embed.weight",
                                              "vision_encoder.neck.layer_norm1.weight")}
    sam = gf.fill_all("sam_tiny", shapes)
    save_file(sam, path, metadata())

    folder = os.path.join(out, "models", "sam_head")
    os.makedirs(folder, exist_ok=True)
    before = gf.fill_all("sam_head", gf.head_shapes(SAM_HEAD))
    save_file(before, os.path.join(folder, "pseg.safetensors"),
              metadata() | SAM_HEAD.to_metadata())
    after = start_from_sam(sam)
    for k, v in after.items():
        assert before[k].shape == v.shape and not torch.equal(before[k], v), k
    head = ref.PsegHead(SAM_HEAD)
    head.load_state_dict(before | after)
    stages = Stages()
    for k, v in after.items():
        stages.put(k, v)
    stages.save(os.path.join(out, "sam_init.stages.safetensors"))
    # At the reference shape this is the 3.57M that the design states, without the third block.
    full = gf.sam_decoder_shapes(256, 2048, 4)
    meta = {k: torch.empty(s, device="meta") for k, s in full.items()}
    given = sum(v.numel() for k, v in start_from_sam(meta).items() if ".layers.2." not in k)
    assert given == 3_571_649, given


PREPROCESS = {  # photo -> (width, height)
    "wide": (61, 23), "tall": (29, 90), "small": (20, 17), "thin": (75, 3)}


def make_preprocess(out):
    """pixel_values end to end; squash and centre crop also against Hugging Face's processor."""
    stages = Stages()
    for name, (w, h) in PREPROCESS.items():
        img = Image.fromarray(photo(w, h))
        stages.put(f"{name}.rgb", torch.from_numpy(np.array(img)))
        for mode, sizes in (("squash", ((28, 28), (42, 14))), ("letterbox", ((28, 28), (42, 14))),
                            ("centre_crop", ((28, 28),))):
            for size in sizes:
                cfg = ref.PsegConfig(preprocess=mode, image_size=size)
                got = ref.preprocess(img, cfg)[0]
                check_processor(img, cfg, got)
                case = f"{name}.{mode}.{size[0]}x{size[1]}"
                stages.put(f"{case}.pixel_values", got)
                stages.put(f"{case}.rect", torch.tensor(rect_of(img.size, cfg),
                                                        dtype=torch.float64).float())
    stages.save(os.path.join(out, "preprocess.stages.safetensors"))


def check_processor(img, cfg, got):
    """The reference's preprocess equals BitImageProcessor (PIL); letterbox: inside the frame."""
    h, w = cfg.image_size
    nw, nh, left, top = fit_of(img.size, cfg)
    size = {"height": nh, "width": nw}
    if cfg.preprocess == "centre_crop":
        size = {"shortest_edge": 256 * h // 224}
    p = BitImageProcessorPil(
        size=size, resample=3, do_center_crop=cfg.preprocess == "centre_crop",
        crop_size={"height": h, "width": w}, image_mean=list(cfg.image_mean),
        image_std=list(cfg.image_std))
    want = p(img, return_tensors="pt")["pixel_values"][0]
    if cfg.preprocess == "letterbox":
        frame = torch.zeros(3, h, w)
        frame[:, top:top + nh, left:left + nw] = want
        want = frame
    worst = (got - want).abs().max().item()
    assert worst < 2e-6, (img.size, cfg.preprocess, worst)


if __name__ == "__main__":
    sys.exit("run make_golden.py")
