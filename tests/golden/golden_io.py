"""Writing of golden files: one metadata block, model folders in Hugging Face form, a tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter

import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = ("make_golden.py", "golden_fill.py", "golden_io.py", "golden_encoders.py",
           "golden_head.py", "pseg_reference.py")


def generator_sha256() -> str:
    h = hashlib.sha256()
    for name in SOURCES:
        path = os.path.join(HERE, name)
        if os.path.exists(path):
            with open(path, "rb") as f:
                h.update(name.encode() + b"\0" + f.read())
    return h.hexdigest()


def metadata() -> dict:
    return {"format": "pt", "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__, "generator_sha256": generator_sha256()}


class Stages:
    """Named tensors of one file, from a float64 run, checked against the same run in float32.

    What is kept is the float64 result rounded to float32: the data then hold no error of their own
    worth speaking of, and do not depend on how many threads or which BLAS made them.
    """

    LIMIT = 1e-10  # NMSE that PyTorch's own float32 may show at any stage

    def __init__(self):
        self.tensors, self.worst, self.worst_at = {}, 0.0, ""

    def put(self, name, value):
        """value: exact as it is (inputs, ids, masks)."""
        assert name not in self.tensors, name
        self.tensors[name] = value.detach().contiguous().clone()

    def put_pair(self, name, exact, single):
        """exact: float64; single: the same from a float32 model."""
        exact, single = exact.detach(), single.detach()
        assert exact.dtype == torch.float64 and single.dtype == torch.float32, name
        assert exact.shape == single.shape and bool(torch.isfinite(exact).all()), name
        power = (exact ** 2).sum().item()
        if exact.numel() == 1:
            power = max(power, 1.0)  # a single number may happen to be near 0
        nmse = ((exact - single) ** 2).sum().item() / power
        assert nmse < self.LIMIT, (name, nmse)
        if nmse > self.worst:
            self.worst, self.worst_at = nmse, name
        self.put(name, exact.float())

    def put_pairs(self, prefix, exact: dict, single: dict):
        assert exact.keys() == single.keys()
        for k in exact:
            self.put_pair(prefix + k, exact[k], single[k])

    def save(self, path, extra=None):
        extra = (extra or {}) | {"torch_fp32_worst_nmse": f"{self.worst:.2e}", "torch_fp32_worst_at": self.worst_at}
        os.makedirs(os.path.dirname(path), exist_ok=True)
        save_file(self.tensors, path, metadata() | extra)
        print(f"{os.path.getsize(path):9d} {path}  {len(self.tensors)} tensors, "
              f"fp32 NMSE <= {self.worst:.1e}", flush=True)


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def save_folder(folder, config: dict, tensors: dict, dtype=torch.float32, shards=1):
    """config.json and model.safetensors (or shards with their index), as transformers writes."""
    write_json(os.path.join(folder, "config.json"), config)
    out = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    if shards == 1:
        save_file(out, os.path.join(folder, "model.safetensors"), metadata())
        return
    names, index = list(out), {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s * len(names) // shards:(s + 1) * len(names) // shards]
        save_file({k: out[k] for k in part}, os.path.join(folder, file), metadata())
        index |= {k: file for k in part}
    size = sum(v.numel() * v.element_size() for v in out.values())
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": size}, "weight_map": index})


def train_merges(words, count):
    """count byte-pair merges of ASCII words, most frequent first, ties by spelling."""
    split = {w: tuple(w[:-1]) + (w[-1] + "</w>",) for w in words}
    freq, merges = Counter(words), []
    while len(merges) < count:
        pairs = Counter()
        for w, s in split.items():
            for p in zip(s, s[1:]):
                pairs[p] += freq[w]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for w, s in split.items():
            out, i = [], 0
            while i < len(s):
                if s[i:i + 2] == best:
                    out.append(s[i] + s[i + 1])
                    i += 2
                else:
                    out.append(s[i])
                    i += 1
            split[w] = tuple(out)
    return merges


def byte_symbols():
    """The 256 byte symbols of CLIP's vocabulary, in its order."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]


def save_tokenizer(folder, words, count, max_length) -> int:
    """merges.txt, vocab.json and tokenizer_config.json; returns the vocabulary's size."""
    merges = train_merges(words, count)
    base = byte_symbols()
    vocab = base + [s + "</w>" for s in base] + [a + b for a, b in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write_json(os.path.join(folder, "vocab.json"), {t: i for i, t in enumerate(vocab)})
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": max_length,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    return len(vocab)
