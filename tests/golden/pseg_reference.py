"""PSEG in PyTorch: the reference that the C engine is checked against, and what trains "scenes".

Built from Hugging Face's own modules: Dinov2Model, Dinov2WithRegistersModel or ViTModel encode the
image, CLIPTextModelWithProjection the phrase, and the decoder is made of modeling_sam's two-way
attention block, attention, layer norm and feed-forward. Only the wiring between them is here.

Needs torch >= 2.4, transformers >= 5, safetensors, numpy, pillow. Letters: B images, P phrases,
D decoder width, T prompt tokens, (gh, gw) patch grid, N = gh * gw.

The head (neck, text projection, decoder) is "PSEG-1"; everything that can vary is data, kept as
strings in the safetensors __metadata__ (see PsegConfig). The forward pass:

  image  : squash/letterbox/centre crop -> (x / 255 - mean) / std -> vision encoder
  taps   : hidden states after `taps` completed blocks, without CLS and registers, each through the
           encoder's final layer norm if tap_norm = final_ln
  neck   : lateral_i = GELU(GN(conv1x1(tap_i))); L2 += L3; L1 += L2; L0 += L1;
           S_i = GELU(GN(conv3x3(L_i))); F = GELU(GN(conv3x3(S0 + S1 + S2 + S3)))   [D, gh, gw]
  text   : e = text_embeds / |text_embeds|; pooled = text_proj(e)                      [D]
           text_mode = tokens: also text_token_proj(h_t) for t = 1..EOS, where h_t is the output of
           the text tower's final layer norm; BOS (t = 0) is left out because it is the same for
           every phrase, EOS is in                                                     [T, D]
  decoder: tokens = [iou, mask, pooled, words...]; depth x two-way block (block 0 skips the token
           position term); tokens += final attention; layer norm. `decoder.pos_embed` is added to
           the image keys wherever SAM adds its dense position embedding.
  mask   : keys -> (ConvT2x2, LayerNorm2d, GELU) per stage; the last stage has no LayerNorm2d;
           logits = mask_mlp(mask token) . channels                  [gh * 2^stages, gw * 2^stages]
  IoU    : sigmoid(iou_head(iou token))
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import (
    SamAttention,
    SamFeedForward,
    SamLayerNorm,
    SamTwoWayAttentionBlock,
)

FORMAT = "pseg-1"
VISION_PARAMS_BASE = 86_580_480
TEXT_PARAMS_BASE = 63_428_096
HEAD_PARAMS_BASE = 9_254_913


@dataclass
class PsegConfig:
    """Everything PSEG-1 leaves open. Defaults: DINOv2-base with CLIP ViT-B/16's text tower.

    Stored in __metadata__ as strings under the field names; tuples joined by commas.
    """

    taps: tuple = (3, 6, 9, 11)  # in completed blocks; four, shallow to deep
    tap_norm: str = "none"  # none | final_ln
    dim: int = 256
    heads: int = 8
    depth: int = 3
    mlp_dim: int = 2048
    downsample: int = 2  # of the two cross attentions and the final attention
    gn_groups: int = 32
    gn_eps: float = 1e-5
    grid: tuple = (16, 16)  # rows, columns of decoder.pos_embed
    upsample: tuple = (128, 64, 32)  # channels after each ConvT2x2 stage
    upsample_eps: float = 1e-6
    layer_norm_eps: float = 1e-6  # in the two-way blocks
    final_layer_norm_eps: float = 1e-5  # after the final attention
    text_mode: str = "pooled"  # pooled | tokens
    vision_dim: int = 768
    text_dim: int = 512  # of text_embeds (after text_projection)
    text_hidden: int = 512  # width of the text tower, used by text_mode = tokens
    image_size: tuple = (224, 224)  # rows, columns
    patch: int = 14
    preprocess: str = "squash"  # squash | letterbox | centre_crop
    image_mean: tuple = (0.485, 0.456, 0.406)
    image_std: tuple = (0.229, 0.224, 0.225)
    threshold: float = 0.5  # on the sigmoid of the mask logits

    def validate(self) -> "PsegConfig":
        def need(ok, what):
            if not ok:
                raise ValueError(f"pseg config: {what}")

        need(len(self.taps) == 4, f"taps {self.taps}: need four")
        need(self.tap_norm in ("none", "final_ln"), f"tap_norm {self.tap_norm!r}")
        need(self.text_mode in ("pooled", "tokens"), f"text_mode {self.text_mode!r}")
        need(self.preprocess in ("squash", "letterbox", "centre_crop"),
             f"preprocess {self.preprocess!r}")
        need(self.dim % self.gn_groups == 0, f"dim {self.dim} % gn_groups {self.gn_groups}")
        need(self.dim % (self.downsample * self.heads) == 0, "dim % (downsample * heads)")
        return self

    def to_metadata(self) -> dict:
        out = {"format": FORMAT}
        for f in fields(self):
            v = getattr(self, f.name)
            out[f.name] = ",".join(map(str, v)) if isinstance(v, tuple) else str(v)
        return out

    @classmethod
    def from_metadata(cls, meta: dict) -> "PsegConfig":
        if meta.get("format") != FORMAT:
            raise ValueError(f"format {meta.get('format')!r}: expected {FORMAT!r}")
        kw = {}
        for f in fields(cls):
            if f.name not in meta:
                continue
            d, s = f.default, meta[f.name]
            kw[f.name] = tuple(type(d[0])(x) for x in s.split(",")) if isinstance(d, tuple) \
                else type(d)(s)
        return cls(**kw).validate()


class ConvNormGelu(nn.Module):
    """Conv2d with bias, GroupNorm, exact GELU; 1x1, or 3x3 with padding 1."""

    def __init__(self, cfg: PsegConfig, cin: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(cin, cfg.dim, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(cfg.gn_groups, cfg.dim, eps=cfg.gn_eps)

    def forward(self, x):
        return F.gelu(self.norm(self.conv(x)))


class Neck(nn.Module):
    def __init__(self, cfg: PsegConfig):
        super().__init__()
        n = len(cfg.taps)
        self.lateral = nn.ModuleList(ConvNormGelu(cfg, cfg.vision_dim, 1) for _ in range(n))
        self.smooth = nn.ModuleList(ConvNormGelu(cfg, cfg.dim, 3) for _ in range(n))
        self.fuse = ConvNormGelu(cfg, cfg.dim, 3)

    def forward(self, taps, trace=None):
        """taps: list of [B, vision_dim, gh, gw], shallow to deep -> [B, D, gh, gw]."""
        levels = [m(x) for m, x in zip(self.lateral, taps)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + levels[i]
        smooth = [m(x) for m, x in zip(self.smooth, levels)]
        total = smooth[0]
        for s in smooth[1:]:
            total = total + s
        out = self.fuse(total)
        if trace is not None:
            for i, (a, b) in enumerate(zip(levels, smooth)):
                trace[f"neck.level.{i}"], trace[f"neck.smooth.{i}"] = a, b
            trace["neck.fuse"] = out
        return out


class TwoWayBlock(SamTwoWayAttentionBlock):
    """SAM's block, with an additive mask over padded prompt tokens.

    token_mask None gives exactly SamTwoWayAttentionBlock.forward; the mask only serves batches of
    phrases of unequal length (training), where SAM's own block has no place for it.
    """

    def forward(self, queries, keys, query_point_embedding, key_point_embedding, token_mask=None):
        if token_mask is None:
            q, k, _ = super().forward(queries, keys, query_point_embedding,
                                      key_point_embedding, None)
            return q, k
        if self.skip_first_layer_pe:
            queries, _ = self.self_attn(queries, queries, queries, token_mask)
        else:
            query = queries + query_point_embedding
            queries = queries + self.self_attn(query, query, queries, token_mask)[0]
        queries = self.layer_norm1(queries)
        key = keys + key_point_embedding
        attn, _ = self.cross_attn_token_to_image(queries + query_point_embedding, key, keys)
        queries = self.layer_norm2(queries + attn)
        queries = self.layer_norm3(queries + self.mlp(queries))
        attn, _ = self.cross_attn_image_to_token(key, queries + query_point_embedding, queries,
                                                 token_mask)
        return queries, self.layer_norm4(keys + attn)


class UpsampleStage(nn.Module):
    def __init__(self, cfg: PsegConfig, cin: int, cout: int, last: bool):
        super().__init__()
        self.conv = nn.ConvTranspose2d(cin, cout, kernel_size=2, stride=2)
        self.norm = None if last else SamLayerNorm(cout, eps=cfg.upsample_eps,
                                                   data_format="channels_first")

    def forward(self, x):
        x = self.conv(x)
        return F.gelu(x if self.norm is None else self.norm(x))


class Decoder(nn.Module):
    def __init__(self, cfg: PsegConfig):
        super().__init__()
        d = cfg.dim
        sam = SamMaskDecoderConfig(
            hidden_size=d, num_attention_heads=cfg.heads, mlp_dim=cfg.mlp_dim, hidden_act="relu",
            attention_downsample_rate=cfg.downsample, layer_norm_eps=cfg.layer_norm_eps)
        sam._attn_implementation = "sdpa"
        self.pos_embed = nn.Parameter(torch.randn(1, d, *cfg.grid) * 0.02)
        self.iou_token = nn.Parameter(torch.randn(1, d))
        self.mask_token = nn.Parameter(torch.randn(1, d))
        self.layers = nn.ModuleList(
            TwoWayBlock(sam, attention_downsample_rate=cfg.downsample, skip_first_layer_pe=i == 0)
            for i in range(cfg.depth))
        self.final_attn_token_to_image = SamAttention(sam, downsample_rate=cfg.downsample)
        self.layer_norm_final_attn = nn.LayerNorm(d, eps=cfg.final_layer_norm_eps)
        chans = (d,) + tuple(cfg.upsample)
        self.upsample = nn.ModuleList(
            UpsampleStage(cfg, chans[i], chans[i + 1], i == len(cfg.upsample) - 1)
            for i in range(len(cfg.upsample)))
        self.mask_mlp = SamFeedForward(d, d, chans[-1], 3)
        self.iou_head = SamFeedForward(d, d, 1, 3)

    def forward(self, feat, prompt, token_mask=None, trace=None):
        """feat [B, D, gh, gw], prompt [B, T, D] (pooled first) -> logits [B, H, W], iou logit [B].

        token_mask: None, or additive [B, 1, 1, 2 + T] with -inf at padded prompt tokens.
        """
        b, d, gh, gw = feat.shape
        lead = torch.cat([self.iou_token, self.mask_token]).unsqueeze(0).expand(b, -1, -1)
        tokens = torch.cat([lead.to(prompt.dtype), prompt], 1).unsqueeze(1)
        pe = tokens
        keys = feat.flatten(2).transpose(1, 2).unsqueeze(1)
        key_pe = self.pos_embed.flatten(2).transpose(1, 2).unsqueeze(1).expand(b, -1, -1, -1)
        for i, layer in enumerate(self.layers):
            tokens, keys = layer(tokens, keys, pe, key_pe, token_mask)
            if trace is not None:
                trace[f"decoder.layers.{i}.tokens"] = tokens.squeeze(1)
                trace[f"decoder.layers.{i}.keys"] = keys.squeeze(1)
        attn, _ = self.final_attn_token_to_image(tokens + pe, keys + key_pe, keys)
        tokens = self.layer_norm_final_attn(tokens + attn).squeeze(1)
        up = keys.squeeze(1).transpose(1, 2).reshape(b, d, gh, gw)
        if trace is not None:
            trace["decoder.tokens"] = tokens
        for i, stage in enumerate(self.upsample):
            up = stage(up)
            if trace is not None:
                trace[f"decoder.upsample.{i}"] = up
        weights = self.mask_mlp(tokens[:, 1])
        logits = (weights.unsqueeze(1) @ up.flatten(2)).reshape(b, *up.shape[2:])
        iou = self.iou_head(tokens[:, 0]).squeeze(-1)
        if trace is not None:
            trace["decoder.mask_weights"], trace["mask_logits"], trace["iou_logit"] = \
                weights, logits, iou
        return logits, iou


class PsegHead(nn.Module):
    """What pseg.safetensors holds: neck, text projection(s), decoder."""

    def __init__(self, cfg: PsegConfig):
        super().__init__()
        self.cfg = cfg.validate()
        self.neck = Neck(cfg)
        self.text_proj = nn.Linear(cfg.text_dim, cfg.dim)
        if cfg.text_mode == "tokens":
            self.text_token_proj = nn.Linear(cfg.text_hidden, cfg.dim)
        self.decoder = Decoder(cfg)


class Pseg(nn.Module):
    def __init__(self, vision, text, head: PsegHead):
        super().__init__()
        self.vision, self.text, self.head = vision, text, head
        self.cfg = head.cfg

    def encode_image(self, pixels, trace=None):
        """pixels [B, 3, H, W], normalised -> neck output [B, D, gh, gw]."""
        cfg = self.cfg
        kw = {}
        if isinstance(self.vision, ViTModel):
            kw["interpolate_pos_encoding"] = True
        states = self.vision(pixels, output_hidden_states=True, **kw).hidden_states
        gh, gw = pixels.shape[2] // cfg.patch, pixels.shape[3] // cfg.patch
        skip = states[0].shape[1] - gh * gw
        taps = []
        for t in cfg.taps:
            x = states[t]
            if cfg.tap_norm == "final_ln":
                x = self.vision.layernorm(x)
            x = x[:, skip:].transpose(1, 2)
            taps.append(x.reshape(x.shape[0], x.shape[1], gh, gw))
        if trace is not None:
            for i, x in enumerate(states):
                trace[f"vision.hidden.{i}"] = x
            for i, x in enumerate(taps):
                trace[f"vision.tap.{i}"] = x
        return self.head.neck(taps, trace)

    def encode_text(self, ids, trace=None):
        """ids [P, L] int64, BOS first, padded with EOS -> (prompt [P, T, D], token_mask).

        token_mask is None if no phrase is padded, else additive [P, 1, 1, 2 + T].
        """
        head, eos = self.head, self.text.config.eos_token_id
        out = self.text(ids)
        embeds = out.text_embeds / out.text_embeds.norm(dim=-1, keepdim=True)
        pooled = head.text_proj(embeds)
        if trace is not None:
            trace["text.hidden"], trace["text.embeds"] = out.last_hidden_state, out.text_embeds
            trace["text.pooled"] = pooled
        prompt, mask = pooled.unsqueeze(1), None
        if self.cfg.text_mode == "tokens":
            words = head.text_token_proj(out.last_hidden_state[:, 1:])
            prompt = torch.cat([prompt, words], 1)
            past_eos = (ids == eos).int().cumsum(1)[:, 1:] - (ids == eos).int()[:, 1:] > 0
            if bool(past_eos.any()):
                pad = F.pad(past_eos, (3, 0))
                mask = torch.zeros(pad.shape, dtype=prompt.dtype).masked_fill(pad, -torch.inf)
                mask = mask[:, None, None, :]
        if trace is not None:
            trace["text.prompt"] = prompt
        return prompt, mask

    def forward(self, pixels, ids, image_of=None, trace=None):
        """pixels [B, 3, H, W]; ids [P, L]; image_of [P]: the image each phrase belongs to.

        Returns mask logits [P, H', W'] and the predicted IoU in 0..1 [P].
        """
        feat = self.encode_image(pixels, trace)
        prompt, mask = self.encode_text(ids, trace)
        if image_of is not None:
            feat = feat[image_of]
        logits, iou = self.head.decoder(feat, prompt, mask, trace)
        return logits, torch.sigmoid(iou)


def preprocess(img, cfg: PsegConfig) -> torch.Tensor:
    """PIL image (RGB) -> [1, 3, H, W] fp32, normalised. Resampling: PIL's bicubic.

    squash: straight to (H, W). letterbox: longest side fits, centred, the rest is 0 after
    normalisation. centre_crop: Hugging Face's shortest edge 256 (scaled with image_size / 224),
    then the centre crop.
    """
    from PIL import Image

    h, w = cfg.image_size
    mean, std = (np.asarray(v, np.float32) for v in (cfg.image_mean, cfg.image_std))

    def resized(nw, nh):
        same = (nw, nh) == img.size
        return np.asarray(img if same else img.resize((nw, nh), Image.BICUBIC), np.float32)

    def norm(x):
        return (x / np.float32(255) - mean) / std

    if cfg.preprocess == "squash":
        out = norm(resized(w, h))
    elif cfg.preprocess == "letterbox":
        s = min(w / img.width, h / img.height)
        nw, nh = max(1, min(w, round(img.width * s))), max(1, min(h, round(img.height * s)))
        out = np.zeros((h, w, 3), np.float32)
        top, left = (h - nh) // 2, (w - nw) // 2
        out[top:top + nh, left:left + nw] = norm(resized(nw, nh))
    else:
        edge = 256 * h // 224
        short, long = sorted(img.size)
        other = int(edge * long / short)
        nw, nh = (edge, other) if img.width <= img.height else (other, edge)
        x = resized(nw, nh)
        top, left = (nh - h) // 2, (nw - w) // 2
        out = norm(x[top:top + h, left:left + w])
    return torch.from_numpy(np.ascontiguousarray(out)).permute(2, 0, 1).unsqueeze(0)


VISION_KINDS = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "vit": (ViTConfig, ViTModel),
}


def new_vision(config):
    """A vision encoder with random weights from a Hugging Face config object."""
    cls = VISION_KINDS[config.model_type][1]
    return cls(config, add_pooling_layer=False) if cls is ViTModel else cls(config)


def load_vision(folder: str):
    with open(os.path.join(folder, "config.json")) as f:
        kind = json.load(f)["model_type"]
    cls = VISION_KINDS[kind][1]
    kw = {"add_pooling_layer": False} if cls is ViTModel else {}
    return cls.from_pretrained(folder, dtype=torch.float32, **kw).eval()


def load_text(folder: str):
    return CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()


def load_head(path: str) -> PsegHead:
    with safe_open(path, "pt") as f:
        cfg = PsegConfig.from_metadata(f.metadata())
    head = PsegHead(cfg)
    head.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return head.eval()


def load_model(folder: str) -> Pseg:
    """A model folder (see save_model) as fp32 modules in eval mode."""
    with open(os.path.join(folder, "pseg.json")) as f:
        desc = json.load(f)
    return Pseg(load_vision(os.path.join(folder, desc["vision"])),
                load_text(os.path.join(folder, desc["text"])),
                load_head(os.path.join(folder, desc["decoder"]))).eval()


def load_tokenizer(folder: str):
    """The tokenizer of a model folder; call it through tokenize()."""
    from transformers import CLIPTokenizerFast

    with open(os.path.join(folder, "pseg.json")) as f:
        text = os.path.join(folder, json.load(f)["text"])
    return CLIPTokenizerFast.from_pretrained(text)


def tokenize(tokenizer, phrases, max_len: int) -> torch.Tensor:
    """Phrases -> ids [P, L]: BOS, at most max_len - 2 tokens, EOS; padded with EOS."""
    eos = tokenizer.eos_token_id
    rows = [tokenizer(p, truncation=True, max_length=max_len)["input_ids"] for p in phrases]
    longest = max(map(len, rows))
    return torch.tensor([r + [eos] * (longest - len(r)) for r in rows])


def save_head(head: PsegHead, path: str, dtype=torch.float16) -> None:
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in head.state_dict().items()}
    save_file(tensors, path, metadata=head.cfg.to_metadata())


def save_model(model: Pseg, folder: str, name: str, description: str, tokenizer_files: dict,
               dtype=torch.float16) -> None:
    """Writes a model folder:

    pseg.json, pseg.safetensors, vision/{config.json,model.safetensors,preprocessor_config.json},
    text/{config.json,model.safetensors,merges.txt,vocab.json,...}.
    tokenizer_files: file name -> text, for text/. Weights are rounded to dtype.
    """
    import copy

    cfg = model.cfg
    os.makedirs(folder, exist_ok=True)
    for part, m in (("vision", model.vision), ("text", model.text)):
        copy.deepcopy(m).to(dtype).save_pretrained(os.path.join(folder, part))
    save_head(model.head, os.path.join(folder, "pseg.safetensors"), dtype)
    for file, content in tokenizer_files.items():
        with open(os.path.join(folder, "text", file), "w", encoding="utf-8") as f:
            f.write(content)
    h, w = cfg.image_size
    crop = cfg.preprocess == "centre_crop"
    write_json(os.path.join(folder, "vision", "preprocessor_config.json"), {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": 256 * h // 224} if crop else {"height": h, "width": w},
        "do_center_crop": crop, "crop_size": {"height": h, "width": w},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(cfg.image_mean), "image_std": list(cfg.image_std)})
    write_json(os.path.join(folder, "pseg.json"), {
        "name": name, "description": description,
        "vision": "vision", "text": "text", "decoder": "pseg.safetensors"})
    for root, _, files in os.walk(folder):
        for file in files:
            os.chmod(os.path.join(root, file), 0o644)


def write_json(path: str, value) -> None:
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def count_params(module) -> int:
    return sum(p.numel() for p in module.parameters())


def check_base_params() -> dict:
    """DINOv2-base, CLIP ViT-B/16 text and the default head have the published counts."""
    with torch.device("meta"):
        got = {
            "vision": count_params(Dinov2Model(Dinov2Config(image_size=518))),
            "text": count_params(CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=512))),
            "head": count_params(PsegHead(PsegConfig())),
        }
    want = {"vision": VISION_PARAMS_BASE, "text": TEXT_PARAMS_BASE, "head": HEAD_PARAMS_BASE}
    assert got == want, (got, want)
    return got


def check_mask_equals_unpadded() -> float:
    """A padded batch gives each phrase what it gives alone, and SAM's own block agrees."""
    torch.manual_seed(0)
    cfg = PsegConfig(dim=64, heads=4, mlp_dim=128, vision_dim=48, text_dim=24, text_hidden=32,
                     text_mode="tokens", taps=(1, 2, 3, 3), grid=(4, 4), upsample=(16, 8),
                     image_size=(56, 56))
    vis = Dinov2Model(Dinov2Config(hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
                                   image_size=56, patch_size=14))
    txt = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=24, max_position_embeddings=12,
        bos_token_id=38, eos_token_id=39))
    model = Pseg(vis, txt, PsegHead(cfg)).eval()
    pix = torch.randn(2, 3, 56, 56)
    ids = torch.tensor([[38, 1, 2, 3, 39], [38, 5, 39, 39, 39]])
    with torch.no_grad():
        both, iou = model(pix, ids)
        one, iou1 = model(pix[1:], ids[1:, :3])
    worst = max((both[1] - one[0]).abs().max().item(), (iou[1] - iou1[0]).abs().item())
    assert worst < 1e-5, worst
    return worst


if __name__ == "__main__":
    print(json.dumps({"params": check_base_params(), "padding": check_mask_equals_unpadded()}))
