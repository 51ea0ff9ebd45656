"""Trains the embedded model "scenes" from nothing and writes its model folder.

    python3 tests/golden/train_scenes.py --scenes BUILD/bin/pseg-scenes --out deploy/models/scenes
        [--minutes M]

Needs torch >= 2.9, transformers >= 5, safetensors, numpy, a C++ compiler for torch.compile (or
--no-compile, about half as fast), and the project's own scene generator; no data set, no network.
Every scene is drawn once and thrown away, so there are no epochs.

  image  : a DINOv2-shaped ViT (hidden 192, 6 blocks, patch 14, 224 px)
  text   : a CLIP-shaped tower (hidden 128, 3 blocks) with its own byte-level BPE, trained on the
           generator's phrases
  head   : PSEG-1, width 128, 4 two-way blocks, word tokens as prompts, 64 x 64 logits
  loss   : BCE + Dice on the mask, mean square error on the predicted IoU, and while training only
           two linear probes: one names each patch's size, texture, colour and shape (from the
           generator's --describe), one reads the phrase's mask off the image keys after each
           two-way block
  steps  : Muon for weight matrices, AdamW for the rest; warm-up, flat, then cosine to zero over
           the wall-clock budget; gradient norm clipped to 1; an average of the weights is kept
           and exported

Seeds: training from 1,000,000; validation 500,000..; the held-out test 0..999 is never drawn here.

The weights in deploy/models/scenes began as one run of the command above and were trained on by `pseg train`
(docs/models.md). That run, from nothing: 130 minutes on two
cores of an Intel Xeon with AMX (bf16 matrix products) that did other things besides, 130,240 scenes
and 521,000 phrases at 5 to 27 images/s. mIoU on 64 validation scenes after 20 minutes 0.75, after 50
minutes 0.78, and 0.84 at the end, when the rate had fallen to zero. Without the two probes shapes and
textures are hardly learnt: a run of 97 minutes that had them in its second half only ended at 0.797.
No two runs give the same bits, since the schedule follows the clock.

eval_scenes.py on the exported fp16 folder, seeds 0..999, 4,492 phrases: mIoU 0.838, attribute 0.888,
relational 0.783, superlative 0.864, with another object's phrase 0.017, IoU above 0.5 in 92.8 %,
predicted IoU off by 0.071 on average.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import re
import threading
import time
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Dinov2Config, Dinov2Model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from eval_scenes import SIZE, evaluate, read_scenes
from pseg_reference import Pseg, PsegConfig, PsegHead, count_params, save_model, tokenize

TRAIN_SEED, VALIDATION_SEED = 1_000_000, 500_000
MAX_TOKENS = 32
PHRASES = 4  # of one image in one step, on average
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+")
DESCRIPTION = ("Trained from nothing on scenes drawn by pseg-scenes: it knows coloured shapes and "
               "how they stand to each other, not photographs.")


def byte_symbols() -> tuple:
    """CLIP's 256 printable stand-ins for bytes: (in id order, by byte)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    symbols = {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [symbols[b] for b in keep + rest], symbols


def train_bpe(phrases, max_merges: int) -> dict:
    """CLIP's form of byte-level BPE learnt on phrases: {"merges.txt": ..., "vocab.json": ...}."""
    order, symbols = byte_symbols()
    words = Counter(w for p in phrases for w in WORD.findall(p))
    parts = {}
    for w in words:
        s = [symbols[b] for b in w.encode()]
        parts[w] = s[:-1] + [s[-1] + "</w>"]
    merges = []
    while len(merges) < max_merges:
        pairs = Counter()
        for w, s in parts.items():
            for pair in zip(s, s[1:]):
                pairs[pair] += words[w]
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for w, s in parts.items():
            out, i = [], 0
            while i < len(s):
                if i + 1 < len(s) and (s[i], s[i + 1]) == best:
                    out.append(s[i] + s[i + 1])
                    i += 2
                else:
                    out.append(s[i])
                    i += 1
            parts[w] = out
    vocab = order + [s + "</w>" for s in order] + ["".join(m) for m in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS,
              "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
              "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return {
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "vocab.json": json.dumps({t: i for i, t in enumerate(vocab)}, ensure_ascii=False) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def make_tokenizer(files: dict, folder: str):
    """The Hugging Face tokenizer of train_bpe's files."""
    from transformers import CLIPTokenizerFast

    os.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(text)
    return CLIPTokenizerFast.from_pretrained(folder)


class WordTokenizer:
    """tokenize() for training: caches by word; the same ids, since BPE never crosses words."""

    def __init__(self, tok):
        self.tok, self.cache = tok, {}
        self.bos, self.eos = tok.bos_token_id, tok.eos_token_id

    def __call__(self, phrase: str) -> list:
        ids = [self.bos]
        for w in WORD.findall(phrase):
            if w not in self.cache:
                self.cache[w] = self.tok(w)["input_ids"][1:-1]
            ids += self.cache[w]
        return ids[:MAX_TOKENS - 1] + [self.eos]


def plain_attention(module, query, key, value, attention_mask=None, scaling=None, **kw):
    """Attention as two matrix products: on a CPU, SDPA's backward is several times slower."""
    with torch.autocast("cpu", enabled=False):
        s = torch.matmul(query * scaling, key.transpose(-1, -2))
        if attention_mask is not None:
            s = s + attention_mask.to(s.dtype)
        return torch.matmul(torch.softmax(s, -1), value).transpose(1, 2), None


def use_plain_attention(model: Pseg) -> None:
    ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)
    model.vision.config._attn_implementation = "plain"
    model.head.decoder.layers[0].self_attn.config._attn_implementation = "plain"
    model.text.set_attn_implementation("eager")


def sincos(dim: int, g: int) -> torch.Tensor:
    """[dim, g, g]: the usual fixed 2-D position code, a start for learned ones."""
    f = 1.0 / 100 ** (torch.arange(dim // 4) / (dim // 4))
    a = torch.arange(g).float()[None, :] * f[:, None]
    x = torch.cat([a.sin(), a.cos()])
    return torch.cat([x[:, None, :].expand(-1, g, -1), x[:, :, None].expand(-1, -1, g)])


def new_model(vocab_size: int) -> Pseg:
    hidden, dim, words, patch = 192, 128, 128, 14
    grid = SIZE // patch
    cfg = PsegConfig(
        taps=(2, 4, 5, 6), tap_norm="final_ln", dim=dim, heads=4, depth=4, mlp_dim=384,
        downsample=1, gn_groups=32, grid=(grid, grid), upsample=(32, 16), text_mode="tokens",
        vision_dim=hidden, text_dim=words, text_hidden=words, image_size=(SIZE, SIZE), patch=patch)
    vision = Dinov2Model(Dinov2Config(
        hidden_size=hidden, num_hidden_layers=6, num_attention_heads=hidden // 64,
        image_size=SIZE, patch_size=patch))
    text = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=words, intermediate_size=4 * words,
        num_hidden_layers=3, num_attention_heads=4, projection_dim=words,
        max_position_embeddings=MAX_TOKENS, bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1))
    model = Pseg(vision, text, PsegHead(cfg))
    with torch.no_grad():
        emb = vision.embeddings
        nn.init.normal_(emb.patch_embeddings.projection.weight, std=(3 * patch * patch) ** -0.5)
        emb.position_embeddings[:, 1:] = 0.5 * sincos(hidden, grid).flatten(1).t()
        nn.init.normal_(emb.cls_token, std=0.02)
        model.head.decoder.pos_embed[0] = sincos(dim, grid)
    return model


def orthogonalise(g: torch.Tensor) -> torch.Tensor:
    """Muon's quintic Newton-Schulz: singular values of g [n, R, C] to about one."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalised, for weight matrices (convolutions as [out, in * k * k])."""

    def __init__(self, params, lr, momentum=0.95, decay=0.01):
        self.params, self.base, self.momentum, self.decay = list(params), lr, momentum, decay
        self.state = [torch.zeros_like(p) for p in self.params]
        self.groups = {}
        for i, p in enumerate(self.params):
            self.groups.setdefault(p.reshape(p.shape[0], -1).shape, []).append(i)

    @torch.no_grad()
    def step(self, scale):
        lr = self.base * scale
        grads = [p.grad for p in self.params]
        torch._foreach_lerp_(self.state, grads, 1 - self.momentum)
        torch._foreach_mul_(self.params, 1 - lr * self.decay)
        for shape, idx in self.groups.items():
            g = torch.stack([torch.lerp(grads[i], self.state[i], self.momentum).reshape(shape)
                             for i in idx])
            u = orthogonalise(g) * max(1, shape[0] / shape[1]) ** 0.5
            for k, i in enumerate(idx):
                self.params[i].sub_(u[k].reshape(self.params[i].shape).float(), alpha=lr)


def split_params(model):
    """(matrices for Muon, the rest for AdamW)."""
    hidden, rest = [], []
    for name, p in model.named_parameters():
        if name.endswith("mask_token") and "vision" in name:
            p.requires_grad_(False)  # DINOv2's, unused without masking
            continue
        matrix = p.dim() in (2, 4) and min(p.shape[0], p.numel() // p.shape[0]) > 16
        if matrix and "embed" not in name and "upsample" not in name:
            hidden.append(p)
        else:
            rest.append(p)
    return hidden, rest


class Batches:
    """Batches of (pixels u8, ids u8, tokens, image of each phrase, its target id, word labels,
    last seed), made on a thread. Every batch has the same shapes, so that nothing is compiled
    twice: PHRASES phrases an image on average, drawn from all that the batch's images have."""

    def __init__(self, program, tok, batch, seed, words, longest):
        self.q = queue.Queue(4)
        self.program, self.tok, self.batch, self.words = program, tok, batch, words
        self.longest = longest
        self.rng = np.random.default_rng(seed)
        threading.Thread(target=self.run, args=(seed,), daemon=True).start()

    def run(self, seed):
        items = []
        try:
            for sc in read_scenes(self.program, seed, 100_000_000, describe=True):
                items.append(sc)
                if len(items) == self.batch:
                    self.q.put(self.make(items))
                    items = []
        except Exception as e:  # the training loop raises it
            self.q.put(e)

    def make(self, scenes):
        pool = [(k, p) for k, sc in enumerate(scenes) for p in sc.phrases]
        want = PHRASES * self.batch
        pick = self.rng.choice(len(pool), want, replace=len(pool) < want)
        pick.sort()
        ids = np.full((want, self.longest), self.tok.eos)
        for row, i in enumerate(pick):
            t = self.tok(pool[i][1][0])[:self.longest]
            ids[row, :len(t)] = t
            ids[row, -1] = self.tok.eos
        return (torch.from_numpy(np.stack([s.rgb for s in scenes])),
                torch.from_numpy(np.stack([s.ids for s in scenes])), torch.from_numpy(ids),
                torch.tensor([pool[i][0] for i in pick]),
                torch.tensor([pool[i][1][1] for i in pick], dtype=torch.uint8),
                torch.from_numpy(np.stack([self.words.labels(s) for s in scenes])),
                scenes[-1].seed)

    def next(self):
        b = self.q.get()
        if isinstance(b, Exception):
            raise b
        return b


class LooksProbe(nn.Module):
    """Names size, texture, colour and shape of the object under each patch, from the neck's
    output. Used in training only; without it the encoder learns colours at once, and shapes and
    textures hardly at all, because few phrases turn on them."""

    MAX_OBJECTS = 16

    def __init__(self, looks, dim):
        """looks: (size, texture, colour, shape) of enough objects to have every word."""
        super().__init__()
        self.index = [{w: i for i, w in enumerate(sorted(set(ws)))} for ws in zip(*looks)]
        self.sizes = [len(index) for index in self.index]
        self.classify = nn.Linear(dim, sum(self.sizes))

    def labels(self, scene) -> np.ndarray:
        """[MAX_OBJECTS, 4] int64: the index of each word; -100 where there is no object."""
        out = np.full((self.MAX_OBJECTS, 4), -100)
        for k, looks in scene.looks.items():
            out[k] = [index[w] for index, w in zip(self.index, looks)]
        return out

    def forward(self, feat, ids, labels):
        """feat [B, D, gh, gw] -> (mean cross-entropy of the four, accuracy of the shape)."""
        step = SIZE // feat.shape[-1]
        at = ids[:, step // 2::step, step // 2::step].long()  # the object at each patch's centre
        want = labels[torch.arange(len(labels))[:, None, None], at]
        on = at > 0
        want = want[on]
        parts = self.classify(feat.permute(0, 2, 3, 1)[on]).float().split(self.sizes, -1)
        loss = sum(F.cross_entropy(p, want[:, i]) for i, p in enumerate(parts)) / 4
        return loss, (parts[3].argmax(-1) == want[:, 3]).float().mean()


class KeyProbes(nn.Module):
    """Deep supervision, in training only: the phrase's mask read off the image keys after each
    two-way block by one linear map, so that every block learns to point."""

    def __init__(self, cfg):
        super().__init__()
        self.read = nn.ModuleList(nn.Linear(cfg.dim, 1) for _ in range(cfg.depth))

    def forward(self, trace, target):
        """target [P, gh, gw], the share of each patch -> mean loss of the blocks."""
        total = 0.0
        for i, read in enumerate(self.read):
            logits = read(trace[f"decoder.layers.{i}.keys"]).squeeze(-1).float().view_as(target)
            bce, dice, _ = mask_losses(logits, target)
            total = total + (2 * bce + dice).mean() / len(self.read)
        return total


def area_matrix(out: int, size: int = SIZE) -> torch.Tensor:
    """[out, size]: mean over each of `out` equal parts of `size` pixels, edges split by cover."""
    step = size / out
    lo = torch.arange(out)[:, None] * step
    x = torch.arange(size)[None, :]
    cover = torch.minimum(lo + step, x + 1.0) - torch.maximum(lo, x.float())
    return cover.clamp(min=0) / step


def mask_losses(logits, target):
    """BCE and Dice per phrase, and the thresholded IoU. Both [P, H, W]; target may be soft."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    with torch.no_grad():
        a, b = logits > 0, target > 0.5
        iou = (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)
    return bce, dice, iou


class Trainer:
    def __init__(self, args):
        self.args, self.start, self.used, self.step, self.seen = args, time.time(), 0.0, 0, 0
        self.seed = args.seed
        tok_dir = os.path.join(args.work, "tokenizer")
        phrases, looks = [], []
        for sc in read_scenes(args.scenes, VALIDATION_SEED + 1000, 3000, describe=True):
            phrases += [(p, k) for p, _, _, k in sc.phrases]
            looks += sc.looks.values()
        self.files = train_bpe([p for p, _ in phrases], args.merges)
        hf = make_tokenizer(self.files, tok_dir)
        self.tok = WordTokenizer(hf)
        for p, _ in phrases[:2000]:
            assert self.tok(p) == tokenize(hf, [p], MAX_TOKENS)[0].tolist(), p
        vocab = len(json.loads(self.files["vocab.json"]))
        torch.manual_seed(args.seed)
        self.model = new_model(vocab)
        self.probe = LooksProbe(looks, self.model.cfg.dim)
        self.keys = KeyProbes(self.model.cfg)
        use_plain_attention(self.model)
        self.longest = max(len(self.tok(p)) for p, _ in phrases)
        self.log(f"phrases {len(phrases)}, vocabulary {vocab}, longest {self.longest} tokens, "
                 f"kinds {dict(Counter(k for _, k in phrases))}, "
                 f"parameters {count_params(self.model)}, looks {self.probe.sizes}")
        self.helpers = [*self.probe.parameters(), *self.keys.parameters()]
        hidden, rest = split_params(self.model)
        self.muon = Muon(hidden, args.muon_lr)
        self.adam = torch.optim.AdamW(
            [{"params": rest}, {"params": self.helpers}],
            lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0, foreach=True)
        self.trained = hidden + rest
        self.ema = [p.detach().clone() for p in self.trained]
        if args.resume:
            self.load(args.resume)
        elif args.init:
            self.start_from(args.init)
        m, c = self.model, (torch.compile if args.compile else lambda f: f)
        self.encode_image, self.decode = c(m.encode_image), c(m.head.decoder)
        self.losses = c(mask_losses)
        side = m.cfg.grid[0] << len(m.cfg.upsample)
        self.area = area_matrix(side).bfloat16()
        self.patch_area = area_matrix(m.cfg.grid[0]).bfloat16()
        self.mean = torch.tensor(m.cfg.image_mean).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(m.cfg.image_std).view(1, 3, 1, 1) * 255

    def log(self, text):
        print(time.strftime("%H:%M:%S ") + text, flush=True)

    def progress(self):
        return min(1.0, (self.used + time.time() - self.start) / (60 * self.args.minutes))

    def lr_scale(self):
        p, hold = self.progress(), self.args.hold
        warm = min(1.0, (self.step + 1) / 150)
        return warm * (1.0 if p < hold else
                       max(0.01, 0.5 * (1 + math.cos(math.pi * (p - hold) / (1 - hold)))))

    def pixels(self, rgb):
        x = rgb.permute(0, 3, 1, 2).float()
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def one_step(self, batch):
        rgb, ids, tokens, image_of, targets, labels, _ = batch
        with torch.no_grad():
            hard = (ids[image_of] == targets[:, None, None]).bfloat16()
            target = (self.area @ hard @ self.area.t()).float()
            coarse = (self.patch_area @ hard @ self.patch_area.t()).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            feat = self.encode_image(self.pixels(rgb))
            prompt, mask = self.model.encode_text(tokens)
            if mask is None:
                mask = torch.zeros(len(tokens), 1, 1, 2 + prompt.shape[1], dtype=prompt.dtype)
            trace = {}
            logits, iou_logit = self.decode(feat[image_of], prompt, mask, trace)
            probe, shape = self.probe(feat, ids, labels)
            pointing = self.keys(trace, coarse)
        bce, dice, iou = self.losses(logits.float(), target)
        guess = F.mse_loss(iou_logit.float().sigmoid(), iou)
        fade = max(0.2, 1 - self.progress())
        loss = (self.args.bce * bce.mean() + dice.mean() + 0.2 * guess +
                fade * (self.args.probe * probe + self.args.pointing * pointing))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        scale = self.lr_scale()
        self.muon.step(scale)
        for g in self.adam.param_groups:
            g["lr"] = self.args.lr * scale
        self.adam.step()
        for p in self.trained + self.helpers:
            p.grad = None
        self.step += 1
        keep = min(self.args.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1 - keep)
        return [bce.mean().item(), dice.mean().item(), guess.item(), probe.item(),
                shape.item(), pointing.item(), iou.mean().item(), float(norm)]

    def swap(self):
        """Exchanges the weights with their average (call again to undo)."""
        with torch.no_grad():
            for p, e in zip(self.trained, self.ema):
                held = p.clone()
                p.copy_(e)
                e.copy_(held)

    @torch.no_grad()
    def validate(self, count):
        self.swap()
        self.model.eval()
        out = evaluate(self.model, lambda p: self.tok(p), self.args.scenes, VALIDATION_SEED, count,
                       autocast=True)
        self.model.train()
        self.swap()
        return out

    def save(self):
        state = {"model": self.model.state_dict(), "probe": self.probe.state_dict(),
                 "keys": self.keys.state_dict(),
                 "ema": self.ema, "muon": self.muon.state, "adam": self.adam.state_dict(),
                 "step": self.step, "seen": self.seen, "seed": self.seed,
                 "used": self.used + time.time() - self.start}
        path = os.path.join(self.args.work, "last.pt")
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)

    def load(self, path):
        s = torch.load(path)
        self.model.load_state_dict(s["model"])
        self.probe.load_state_dict(s["probe"])
        self.keys.load_state_dict(s["keys"])
        self.ema, self.muon.state = s["ema"], s["muon"]
        self.adam.load_state_dict(s["adam"])
        self.step, self.seen, self.seed, self.used = s["step"], s["seen"], s["seed"], s["used"]

    def start_from(self, path):
        """A new schedule from the averaged weights of a finished run."""
        s = torch.load(path)
        self.model.load_state_dict(s["model"])
        if "keys" in s:
            self.probe.load_state_dict(s["probe"])
            self.keys.load_state_dict(s["keys"])
        with torch.no_grad():
            for p, own, e in zip(self.trained, self.ema, s["ema"]):
                p.copy_(e)
                own.copy_(e)
        self.seen, self.seed = s["seen"], s["seed"]

    def export(self, folder):
        self.swap()
        save_model(self.model, folder, "scenes", DESCRIPTION, self.files)
        self.swap()

    def run(self):
        a = self.args
        data = Batches(a.scenes, self.tok, a.batch, self.seed, self.probe, self.longest)
        sums, n, t0 = np.zeros(8), 0, time.time()
        saved = checked = time.time()
        while self.progress() < 1 and (not a.steps or self.step < a.steps):
            batch = data.next()
            sums += self.one_step(batch)
            n += 1
            self.seen += a.batch
            self.seed = batch[-1] + 1
            if n == a.every:
                dt = time.time() - t0
                v = sums / n
                self.log(f"{100 * self.progress():5.1f} % step {self.step} scenes {self.seen} "
                         f"bce {v[0]:.4f} dice {v[1]:.4f} guess {v[2]:.4f} looks {v[3]:.4f} "
                         f"shape {v[4]:.3f} point {v[5]:.4f} iou {v[6]:.4f} norm {v[7]:.2f} "
                         f"lr x{self.lr_scale():.3f} "
                         f"{n * a.batch / dt:.1f} images/s")
                sums, n, t0 = np.zeros(8), 0, time.time()
            if time.time() - saved > 60 * a.save_minutes:
                self.save()
                saved = time.time()
            if time.time() - checked > 60 * a.check_minutes:
                self.log("validation " + json.dumps(self.validate(a.check)))
                checked = t0 = time.time()
                sums, n = np.zeros(8), 0
        self.save()
        self.export(a.out)
        self.log(f"done: {self.step} steps, {self.seen} scenes, "
                 f"{(self.used + time.time() - self.start) / 60:.1f} minutes")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--scenes", required=True, help="the pseg-scenes program")
    ap.add_argument("--out", required=True, help="model folder to write")
    ap.add_argument("--minutes", type=float, default=130)
    ap.add_argument("--work", default="build/train-scenes", help="checkpoints")
    ap.add_argument("--resume", help="a checkpoint (work/last.pt) to go on from")
    ap.add_argument("--init", help="a checkpoint whose weights a new schedule starts from")
    ap.add_argument("--export-only", action="store_true", help="write --resume's model and stop")
    ap.add_argument("--seed", type=int, default=TRAIN_SEED)
    ap.add_argument("--batch", type=int, default=20, help="images in a step")
    ap.add_argument("--merges", type=int, default=384)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--muon-lr", type=float, default=0.01)
    ap.add_argument("--bce", type=float, default=2.0)
    ap.add_argument("--probe", type=float, default=1.0)
    ap.add_argument("--pointing", type=float, default=0.5)
    ap.add_argument("--hold", type=float, default=0.4, help="share of the time at full rate")
    ap.add_argument("--ema", type=float, default=0.998)
    ap.add_argument("--steps", type=int, default=0)
    ap.add_argument("--every", type=int, default=50, help="steps between log lines")
    ap.add_argument("--check", type=int, default=64, help="validation scenes")
    ap.add_argument("--check-minutes", type=float, default=4)
    ap.add_argument("--save-minutes", type=float, default=3)
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--no-compile", dest="compile", action="store_false")
    args = ap.parse_args()
    if args.seed < TRAIN_SEED:
        ap.error(f"--seed {args.seed}: training starts at {TRAIN_SEED}")
    if args.threads:
        torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    trainer = Trainer(args)
    if args.export_only:
        trainer.export(args.out)
    else:
        trainer.run()


if __name__ == "__main__":
    main()
