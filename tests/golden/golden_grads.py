"""Gradients of single operations by PyTorch's autograd, for tests/golden/grads_test.c.

    python3 tests/golden/golden_grads.py --out tests/golden/data/grads.safetensors
    python3 tests/golden/golden_grads.py --check tests/golden/data/grads.safetensors

Needs PyTorch alone (Debian's python3-torch will do; the data do not depend on its version).
Everything is computed in float64 from inputs that float32 holds, and rounded to float32 at the end.
A case's tensors lie as the operation's slots do (worker/ops): weights of products are packed here, in
panels of 32 outputs, by code of its own. CASE.i and CASE.f are the operation's numbers, CASE.SLOT its
inputs, CASE.grad the gradient of its output, CASE.d_SLOT what autograd makes of that.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(20261127)


def rand(*shape):
    return (torch.rand(*shape, dtype=torch.float32) * 2 - 1).double()


def pack(w):
    """[n, k] to [ceil(n/32)][k][32], zeros past n."""
    n, k = w.shape
    out = torch.zeros((n + 31) // 32 * 32, k, dtype=w.dtype)
    out[:n] = w
    return out.view(-1, 32, k).permute(0, 2, 1).contiguous()


def taps(w):
    """Conv2d's [n, c, 3, 3] to [n, 9*c], column (ky*3+kx)*c + ci."""
    return w.permute(0, 2, 3, 1).reshape(w.shape[0], -1)


class Cases:
    def __init__(self):
        self.tensors = {}

    def put(self, case, ints, reals, out, inputs, same=lambda slot, t: t, extra=None):
        """inputs: slot -> leaf; same: from a leaf, or its gradient, to the slot's layout."""
        grad = rand(*out.shape)
        out.backward(grad)
        t = self.tensors
        t[f"{case}.i"] = torch.tensor(ints, dtype=torch.int64)
        t[f"{case}.f"] = torch.tensor(reals or [0.0], dtype=torch.float32)
        t[f"{case}.grad"] = grad.float()
        for slot, x in inputs.items():
            t[f"{case}.{slot}"] = same(slot, x.detach()).float()
            t[f"{case}.d_{slot}"] = same(slot, x.grad).float()
        for slot, x in (extra or {}).items():
            t[f"{case}.{slot}"] = x


def leaf(*shape):
    return rand(*shape).requires_grad_()


def products(c):
    m, n, k = 13, 37, 19
    a, w, b = leaf(m, k), leaf(n, k), leaf(n)
    c.put("linear", [m, n, k, k, n, n, 0], None, F.linear(a, w, b), {"a": a, "w": w, "bias": b},
          lambda slot, t: pack(t) if slot == "w" else t)
    a, w, r = leaf(150, 9), leaf(64, 9), leaf(150, 64)
    c.put("residual", [150, 64, 9, 9, 64, 64, 0], None, r + F.linear(a, w),
          {"a": a, "w": w, "res": r}, lambda slot, t: pack(t) if slot == "w" else t)
    bn, h, wd, ci, co = 2, 5, 6, 7, 35
    x, w, b = leaf(bn, ci, h, wd), leaf(co, ci, 3, 3), leaf(co)
    y = F.conv2d(x, w, b, padding=1)
    c.put("conv", [bn, h, wd, ci, co], None, y.permute(0, 2, 3, 1), {"x": x, "w": w, "bias": b},
          lambda slot, t: pack(taps(t)) if slot == "w" else t.permute(0, 2, 3, 1) if slot == "x"
          else t)
    q, x = leaf(3, 2, 8), leaf(3, 21, 8)
    c.put("maskdot", [3, 2, 21, 8], None, torch.einsum("bqc,bnc->bqn", q, x), {"q": q, "x": x})


ACTS = {1: F.gelu, 2: lambda x: x * torch.sigmoid(1.702 * x), 3: F.relu, 4: F.silu,
        5: torch.sigmoid}


def elements(c):
    for number, act in ACTS.items():
        x = (rand(200) * 6).float().double().requires_grad_()
        c.put(f"act{number}", [200, number], None, act(x), {"x": x})
    x = leaf(5, 26)
    c.put("swiglu", [5, 13], None, F.silu(x[:, :13]) * x[:, 13:], {"x": x})
    x, y = leaf(3, 5, 7), leaf(5, 7)
    c.put("position", [3, 5, 7, 35, 7, 35, 7, 0, 7], [0.5], x + 0.5 * y, {"x": x, "y": y})
    x, y = leaf(3, 5, 7), leaf(7)
    c.put("bias", [3, 5, 7, 35, 7, 35, 7, 0, 0], [1.0], x + y, {"x": x, "y": y})
    x = leaf(4, 7)
    c.put("repeat", [3, 4, 7, 28, 7, 0, 7], [-2.0], -2.0 * x.expand(3, 4, 7), {"x": x})


def norms(c):
    for name, act in (("layernorm", 0), ("layernorm_gelu", 1)):
        x, w, b = leaf(6, 40), leaf(40), leaf(40)
        y = F.layer_norm(x, (40,), w, b, 1e-5)
        c.put(name, [6, 40, 40, 40, act], [1e-5], ACTS[1](y) if act else y,
              {"x": x, "w": w, "b": b})
    for name, act, groups, ch in (("groupnorm", 0, 3, 24), ("groupnorm_gelu", 1, 4, 16)):
        x, w, b = leaf(2, ch, 11), leaf(ch), leaf(ch)
        y = F.group_norm(x, groups, w, b, 1e-5)
        y = (ACTS[1](y) if act else y).permute(0, 2, 1)
        c.put(name, [2, 11, ch, groups, act], [1e-5], y, {"x": x, "w": w, "b": b},
              lambda slot, t: t.permute(0, 2, 1) if slot == "x" else t)
    x = leaf(4, 33)
    c.put("normalize", [4, 33], [1e-12], F.normalize(x, dim=-1), {"x": x})


def attend(q, k, v, heads, mask, scale):
    def split(t):
        return t.view(t.shape[0], t.shape[1], heads, -1).transpose(1, 2)

    s = split(q) @ split(k).transpose(2, 3) * scale
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf)
    o = torch.softmax(s, -1) @ split(v)
    return o.transpose(1, 2).reshape(q.shape[0], q.shape[1], -1)


def attention(c):
    def case(name, b, heads, d, nq, nk, mask=None, causal=0, shared=False, extra=None):
        hd, kb = heads * d, 1 if shared else b
        q, k, v = leaf(b, nq, hd), leaf(kb, nk, hd), leaf(kb, nk, hd)
        scale = float(torch.tensor(d ** -0.5, dtype=torch.float32))
        o = attend(q, k.expand(b, nk, hd), v.expand(b, nk, hd), heads, mask, scale)
        step = 0 if shared else nk * hd
        c.put(name, [b, heads, d, nq, nk, hd, hd, hd, hd, nq * hd, step, step, nq * hd, causal],
              [scale], o, {"q": q, "k": k, "v": v}, extra=extra)
        # The kernel reads what forward made.
        c.tensors[f"{name}.out"] = o.detach().float()

    case("tokens_to_image", 2, 2, 16, 3, 70)
    case("image_to_tokens", 2, 2, 16, 40, 3)
    case("shared_image", 3, 2, 8, 4, 21, shared=True)
    case("causal", 2, 2, 16, 9, 9, causal=1, mask=torch.ones(9, 9, dtype=torch.bool).tril())
    lens = torch.tensor([5, 12])
    case("lengths", 2, 1, 32, 6, 12, mask=(torch.arange(12)[None] < lens[:, None])[:, None, None],
         extra={"key_len": lens})


def layouts(c):
    x = leaf(2, 3, 4, 20)  # [B, H, W, 4*C]
    y = x.view(2, 3, 4, 2, 2, 5).permute(0, 1, 3, 2, 4, 5).reshape(2, 6, 8, 5)
    c.put("shuffle", [2, 3, 4, 5], None, y, {"x": x})
    x = leaf(2, 4, 3, 5)  # [B, C, H, W]
    y = F.unfold(x, 3, padding=1).view(2, 4, 9, 15).permute(0, 3, 2, 1)
    c.put("im2col", [2, 3, 5, 4], None, y, {"x": x}, lambda slot, t: t.permute(0, 2, 3, 1))
    x = leaf(2, 6, 5)
    c.put("transpose", [2, 6, 5], None, x.transpose(1, 2), {"x": x})
    p, cls, regs, pos = leaf(2, 6, 5), leaf(5), leaf(3, 5), leaf(7, 5)
    y = torch.cat([(cls + pos[0]).expand(2, 1, 5), regs.expand(2, 3, 5), p + pos[1:]], 1)
    c.put("tokens", [2, 6, 5, 3], None, y, {"patch": p, "cls": cls, "regs": regs, "pos": pos})
    table, pos, ids = leaf(11, 6), leaf(4, 6), torch.tensor([3, 0, 3, 10, 7, 3, 0, 9])
    y = F.embedding(ids.view(2, 4), table) + pos
    c.put("embedding", [8, 6, 11, 6, 4], None, y.view(8, 6), {"x": table, "pos": pos},
          extra={"idx": ids})


def make():
    c = Cases()
    for part in (products, elements, norms, attention, layouts):
        part(c)
    return c.tensors


def write(path, tensors):
    header, blobs, at = {"__metadata__": {"generator": "golden_grads.py"}}, [], 0
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        kind = {torch.float32: "F32", torch.int64: "I64"}[t.dtype]
        data = t.numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        blobs.append(data)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, e in json.loads(data[8:8 + n]).items():
        if name != "__metadata__":
            first, last = e["data_offsets"]
            kind = {"F32": torch.float32, "I64": torch.int64}[e["dtype"]]
            out[name] = torch.frombuffer(bytearray(data[8 + n + first:8 + n + last]),
                                         dtype=kind).view(e["shape"])
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out")
    p.add_argument("--check")
    args = p.parse_args()
    tensors = make()
    if args.out:
        write(args.out, tensors)
    if args.check:
        want = read(args.check)
        if want.keys() != tensors.keys():
            sys.exit("other names")
        for name, t in want.items():
            scale = max(1e-30, float(t.double().pow(2).mean()) ** 0.5)
            if t.shape != tensors[name].shape or \
                    float((t.double() - tensors[name].double()).abs().max()) > 1e-6 * scale:
                sys.exit(f"{name} differs")
        print(f"{len(want)} tensors are the same")


if __name__ == "__main__":
    main()
