"""Makes the data of tokenizer_test.c: what Hugging Face's fast CLIP tokenizer says.

    python3 tests/unit/tokenizer/make.py [--merges] [--clip bpe_simple_vocab_16e6.txt.gz]

Needs transformers >= 5. Writes data.txt beside itself; with --merges also merges.txt, a vocabulary
learnt on the same strings, which the data then depend on. Without --clip the lines about CLIP's own
vocabulary, whose file is not part of the project, are kept as they are.

The strings are made by a formula that the test has too (see string_of), so only hashes of their ids
are stored, one per 1,000 strings, and a few strings with their ids for whoever looks for a fault.
They hold the code points that Unicode 14 assigns (see assigned): what later versions add, one
Unicode library knows and another does not.
"""

import argparse
import gzip
import os
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MASK = (1 << 64) - 1
EACH, BLOCK, MAX = 8, 1000, 77
RANDOM, WORDS = 40_000, 30_000
SNIPPETS = [
    " ", " ", " ", " ", "  ", "\t", "\n", "\u00a0", "\u2003", "\u3000", "a", "b", "I", "the ", "red ",
    "small ", "circle", "square ", " left of", "rectangle", "to the right of the ", "between",
    "photograph", "UPPER", "MiXeD", "don't", "it's ", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'",
    "''", "'S", "we'll've", "1", "23 ", "2024", "3.14", "1,000", "!", "?!", "...", ", ", "-", "--", "#",
    "@x", "_", "a_b", "<", ">", "|", "</w>", "<|", "|>", "<|startoftext|>", "<|endoftext|>",
    "<|ENDOFTEXT|>", "<|StartOfText|>", "<|endoftext", "|endoftext|>", "\u00e9", "e\u0301", "E\u0301",
    "caf\u00e9 ", "\u00df", "\u1e9e", "\u0130", "I\u0307", "\u03a3", "\u039f\u0394\u039f\u03a3", "\u03c2",
    "\u6f22\u5b57", "\u4eca\u65e5\u306f", "\ud55c\uae00", "\u1112\u1161\u11ab", "\u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f642", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2167", "\u00bd", "\u0967", "\ufb01",
    "A\u030a", "\u212b", "\u212a", "q\u0323\u0307", "q\u0307\u0323", "\u0344", "\u200b", "\u00ad", "\u0085",
    "\x1c", "\x00", "\ufeff", "\ufffd", "\u20ac", "x" * 30, "\u0436" * 12, "ab" * 40,
]


def assigned():
    """Ranges of code points that Unicode 14 assigns, from Perl's tables, without surrogates, and
    without the 98 combining marks that are younger than Unicode 9: the tokenizers library, whose
    tables for normalisation are older than its others, does not put them in order."""
    code = ("use Unicode::UCD; die 'Unicode '.Unicode::UCD::UnicodeVersion() if "
            "Unicode::UCD::UnicodeVersion() lt '14'; "
            "for (0..0x10ffff) { print \"$_\\n\" if chr($_) =~ /\\p{In=9.0}|(?=\\p{In=14.0})\\p{Ccc=0}/ }")
    out = subprocess.run(["perl", "-e", code], check=True, capture_output=True, text=True).stdout
    ranges = []
    for cp in map(int, out.split()):
        if 0xD800 <= cp < 0xE000:
            continue
        if ranges and ranges[-1][1] == cp - 1:
            ranges[-1][1] = cp
        else:
            ranges.append([cp, cp])
    return ranges


class Rng:
    """splitmix64."""

    def __init__(self, seed):
        self.x = seed

    def next(self, n):
        self.x = (self.x + 0x9E3779B97F4A7C15) & MASK
        z = self.x
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return (z ^ z >> 31) % n


def string_of(i, points, ranges):
    """points: every assigned code point in order. First all of them, EACH a string; then any from
    any range; then words."""
    r, n_sweep, out = Rng(i), -(-len(points) // EACH), []
    if i < n_sweep:
        for cp in points[i * EACH:(i + 1) * EACH]:
            out += chr(cp), ["", "", "", " ", "a", "1", "'", "\u0301"][r.next(8)]
    elif i < n_sweep + RANDOM:
        for _ in range(1 + r.next(24)):
            lo, hi = ranges[r.next(len(ranges))]
            out.append(chr(lo + r.next(hi - lo + 1)))
            if r.next(4) == 0:
                out.append(" ")
    else:
        for _ in range(r.next(40)):
            out.append(SNIPPETS[r.next(len(SNIPPETS))])
    return "".join(out)


def fnv(ids):
    h = 0xCBF29CE484222325
    for row in ids:
        for v in [len(row), *row]:
            for b in v.to_bytes(4, "little"):
                h = (h ^ b) * 0x100000001B3 & MASK
    return h


def byte_symbols():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def tokenizer_of(merges):
    """Hugging Face's, with CLIP's ids: bytes, bytes at a word's end, merges, BOS, EOS."""
    from transformers import CLIPTokenizerFast

    base = byte_symbols()
    vocab = base + [s + "</w>" for s in base] + ["".join(m.split()) for m in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    import json
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "merges.txt"), "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "".join(m + "\n" for m in merges))
        with open(os.path.join(d, "vocab.json"), "w", encoding="utf-8") as f:
            json.dump({t: i for i, t in enumerate(vocab)}, f)
        return CLIPTokenizerFast.from_pretrained(d)


def learn(strings, n_merges):
    import json

    from tokenizers import Tokenizer, models, trainers
    hf = json.loads(tokenizer_of([]).backend_tokenizer.to_str())
    hf["added_tokens"], hf["post_processor"] = [], None
    hf["model"] = json.loads(Tokenizer(models.BPE()).to_str())["model"] | {"end_of_word_suffix": "</w>"}
    tok = Tokenizer.from_str(json.dumps(hf))
    tok.train_from_iterator(strings, trainers.BpeTrainer(
        vocab_size=512 + n_merges, end_of_word_suffix="</w>", initial_alphabet=byte_symbols(),
        show_progress=False))
    merges = json.loads(tok.to_str())["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(m) for m in merges]


def lines_of(name, tok, strings, samples):
    out = []
    for i in samples:
        ids = tok(strings[i], truncation=True, max_length=MAX)["input_ids"]
        out.append(f"{name} {i} {strings[i].encode().hex()} " + " ".join(map(str, ids)))
    for at in range(0, len(strings), BLOCK):
        rows = tok(strings[at:at + BLOCK], truncation=True, max_length=MAX)["input_ids"]
        out.append(f"{name}-block {at} {fnv(rows):016x}")
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--merges", action="store_true")
    p.add_argument("--clip")
    a = p.parse_args()
    ranges = assigned()
    points = [cp for lo, hi in ranges for cp in range(lo, hi + 1)]
    n_sweep = -(-len(points) // EACH)
    strings = [string_of(i, points, ranges) for i in range(n_sweep + RANDOM + WORDS)]
    samples = [*range(0, n_sweep, 1009), *range(n_sweep, n_sweep + RANDOM, 1601),
               *range(n_sweep + RANDOM, len(strings), 151)]
    merges_path, data_path = os.path.join(HERE, "merges.txt"), os.path.join(HERE, "data.txt")
    if a.merges:
        merges = learn(strings[:n_sweep:7] + strings[n_sweep + RANDOM:], 1500)
        with open(merges_path, "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "".join(m + "\n" for m in merges))
    with open(merges_path, encoding="utf-8") as f:
        own = f.read().split("\n")[1:-1]
    out = [f"range {lo:x} {hi:x}" for lo, hi in ranges]
    out += [f"snippet {s.encode().hex()}" for s in SNIPPETS]
    out += lines_of("own", tokenizer_of(own), strings, samples)
    if a.clip:
        with gzip.open(a.clip, "rt", encoding="utf-8") as f:
            clip = f.read().split("\n")[1:49152 - 256 - 2 + 1]
        out += lines_of("clip", tokenizer_of(clip), strings, samples)
    else:
        with open(data_path, encoding="utf-8") as f:
            out += [line.rstrip("\n") for line in f if line.startswith("clip")]
    with open(data_path, "w", encoding="utf-8") as f:
        f.write("\n".join(out) + "\n")
    print(f"{len(strings)} strings, {len(points)} code points, {len(own)} merges")


main()
