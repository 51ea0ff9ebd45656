#!/usr/bin/env python3
"""Makes the data sets that the tests of worker/data read, with the programs that others use for it:
pyarrow for Parquet, Python's own pickle, pycocotools for masks. Needs pyarrow, numpy and pycocotools;
run in this folder. Each set comes with a text of what it holds, which the tests compare byte by byte."""
import hashlib
import json
import pathlib
import pickle
import random
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

HERE = pathlib.Path(__file__).parent
random.seed(5)
rng = np.random.default_rng(5)


def png(w, h, seed):
    """A grey picture without any library, so that its bytes are the same everywhere."""
    rows = b"".join(b"\0" + bytes((x * 7 + y * 3 + seed) % 256 for x in range(w)) for y in range(h))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def rle(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def blob(w, h):
    x0, y0 = int(rng.integers(0, w - 4)), int(rng.integers(0, h - 4))
    m = np.zeros((h, w), np.uint8)
    m[y0:y0 + int(rng.integers(2, h - y0)), x0:x0 + int(rng.integers(2, w - x0))] = 1
    return m


def show(image_id, file_name, image, samples):
    """One image as the tests write it down."""
    out = [f"image {image_id} {file_name} {hashlib.sha256(image).hexdigest()[:16] if image else '-'}"]
    for s in samples:
        out.append(f"  sample {s['id']} {s['category']} {' '.join('%g' % b for b in s['bbox'])} "
                   f"{s['w']}x{s['h']} area {s['area']}")
        out += [f"    {t}" for t in s["sentences"]]
    return out


WORDS = ["the", "left", "cup", "größer", "red", "dog on a sofa", "woman", "kite", "2nd", "far right"]


def rows(n):
    made = []
    for i in range(n):
        w, h = int(rng.integers(8, 24)), int(rng.integers(8, 24))
        samples = []
        for k in range(1 + (i * 7) % 4):
            m = blob(w, h)
            ys, xs = np.nonzero(m)
            box = [float(xs.min()), float(ys.min()), float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)]
            samples.append({"id": 1000 * i + k, "image_id": i, "category": WORDS[(i + k) % 10], "supercategory": "thing",
                            "label": None if k % 2 else "label", "bbox": box,
                            "sentences": [" ".join(random.sample(WORDS, 1 + j)) for j in range(1 + (i + k) % 3)],
                            "mask": {"counts": rle(m), "size": [h, w]}})
        made.append({"image": png(w, h, i), "image_id": i, "file_name": f"COCO_train2014_{i + 500:012d}.jpg",
                     "samples": samples})
    return made


SAMPLE = pa.struct([("id", pa.int64()), ("image_id", pa.int64()), ("category", pa.string()), ("supercategory", pa.string()),
                    ("label", pa.string()), ("sentences", pa.list_(pa.string())), ("bbox", pa.list_(pa.float64())),
                    ("mask", pa.struct([("counts", pa.string()), ("size", pa.list_(pa.int64()))]))])
SCHEMA = pa.schema([("image", pa.binary()), ("image_id", pa.int64()), ("file_name", pa.string()), ("samples", pa.list_(SAMPLE))])


def describe(made):
    lines = []
    for r in made:
        shown = [{**s, "w": s["mask"]["size"][1], "h": s["mask"]["size"][0], "category": s["category"] or s["label"],
                  "area": int(coco.area({"size": s["mask"]["size"], "counts": s["mask"]["counts"].encode()}))}
                 for s in r["samples"] if s["sentences"]]
        if shown:
            lines += show(r["image_id"], r["file_name"], r["image"], shown)
    return "\n".join(lines) + "\n"


def parquet():
    folder = HERE / "parquet"
    folder.mkdir(exist_ok=True)
    made = rows(9)
    # What may be missing: labels and categories, phrases, samples, the image itself.
    made[2]["samples"][0]["category"] = None
    made[3]["samples"] = []
    made[4]["samples"][0]["sentences"] = []
    made[5]["image"] = None
    table = pa.Table.from_pylist(made, SCHEMA)
    (folder / "expected.txt").write_text(describe(made))
    for codec in ["none", "snappy", "gzip", "zstd"]:
        for version in ["1.0", "2.0"]:
            pq.write_table(table, folder / f"{codec}_v{version[0]}.parquet", compression=codec, data_page_version=version,
                           use_dictionary=codec in ("none", "gzip"), row_group_size=4 if codec != "gzip" else 100)
    strings = ["samples.list.element.category", "samples.list.element.sentences.list.element", "file_name"]
    ints = ["samples.list.element.id", "samples.list.element.mask.size.list.element", "image_id"]
    encoding = {**{c: "DELTA_BYTE_ARRAY" for c in strings}, **{c: "DELTA_BINARY_PACKED" for c in ints},
                "samples.list.element.mask.counts": "DELTA_LENGTH_BYTE_ARRAY",
                "samples.list.element.bbox.list.element": "BYTE_STREAM_SPLIT"}
    for version in ["1.0", "2.0"]:
        pq.write_table(table, folder / f"delta_v{version[0]}.parquet", compression="zstd", data_page_version=version,
                       use_dictionary=False, column_encoding=encoding)
    # Other names in the middle of lists, numbers of 32 bits, and 32-bit floats.
    narrow = pa.struct([(f.name, {"id": pa.int32(), "bbox": pa.list_(pa.float32())}.get(f.name, f.type)) for f in SAMPLE])
    pq.write_table(table.cast(pa.schema([SCHEMA.field(0), ("image_id", pa.int32()), SCHEMA.field(2), ("samples", pa.list_(narrow))])),
                   folder / "narrow.parquet", compression="snappy", use_compliant_nested_type=False)
    # As Hugging Face's library writes images, and a sequence of dicts: as a dict of lists.
    hf = [{"image": {"bytes": r["image"], "path": r["file_name"]}, "image_id": r["image_id"], "file_name": r["file_name"],
           "samples": {k: [s[k] for s in r["samples"]] for k in ("id", "category", "label", "sentences", "bbox", "mask")}}
          for r in made]
    lists = pa.struct([(f.name, pa.list_(f.type)) for f in SAMPLE if f.name not in ("image_id", "supercategory")])
    pq.write_table(pa.Table.from_pylist(hf, pa.schema([
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), SCHEMA.field(1), SCHEMA.field(2), ("samples", lists)])),
        folder / "hf.parquet", compression="snappy")
    for codec in ["brotli", "lz4"]:
        pq.write_table(table, folder / f"{codec}.parquet", compression=codec)
    pq.write_table(pa.table({"a": [1, 2]}), folder / "other.parquet")
    # Many pages: the smallest that the writer makes.
    many = rows(60)
    for r in many:
        r["image_id"] += 100
        r["file_name"] = f"many_{r['image_id']}.png"
    big = pa.Table.from_pylist(many, SCHEMA)
    (folder / "many.txt").write_text(describe(many))
    for version in ["1.0", "2.0"]:
        pq.write_table(big, folder / f"many_v{version[0]}.parquet", compression="snappy", data_page_version=version,
                       data_page_size=200, write_batch_size=4, row_group_size=40, dictionary_pagesize_limit=300)


def instances():
    """A COCO file with every form of mask, and what pycocotools makes of each category's objects."""
    folder = HERE / "coco"
    folder.mkdir(exist_ok=True)
    images = [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "width": 40, "height": 30, "license": 3},
              {"id": 25, "file_name": "COCO_val2014_000000000025.jpg", "width": 31, "height": 47},
              {"id": 30, "file_name": "COCO_val2014_000000000030.jpg", "width": 20, "height": 20}]
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 18, "name": "dog"}, {"id": 3, "name": "traffic light"}]
    size = {i["id"]: (i["height"], i["width"]) for i in images}
    objects, united = [], {}

    def add(image, category, segmentation, decoded, crowd=0):
        objects.append({"id": 100 + len(objects), "image_id": image, "category_id": category, "iscrowd": crowd,
                        "segmentation": segmentation, "bbox": [1, 2, 3, 4], "area": float(decoded.sum())})
        key = (image, category)
        united[key] = united.get(key, 0) | decoded

    for k in range(24):
        image = [9, 25][k % 2]
        h, w = size[image]
        rings = []
        for _ in range(1 + k % 2):
            cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(2, 15)
            a = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
            rings.append([round(float(v), 2) for p in zip(np.clip(cx + r * np.cos(a), 0, w), np.clip(cy + r * np.sin(a), 0, h)) for v in p])
        decoded = coco.decode(coco.merge(coco.frPyObjects(rings, h, w)))
        add(image, [1, 18, 3][k % 3], rings, decoded)
    m = blob(40, 30)
    runs, last, count = [], 0, 0
    for v in m.flatten(order="F"):
        if v != last:
            runs.append(count)
            last, count = v, 0
        count += 1
    add(9, 1, {"size": [30, 40], "counts": runs + [count]}, m, crowd=1)
    m = blob(31, 47)
    add(25, 18, {"size": [47, 31], "counts": rle(m)}, m)
    json.dump({"info": {"text": "braces } ] \" in a text"}, "licenses": [], "annotations": objects, "images": images,
               "categories": categories}, open(folder / "instances.json", "w"))
    name = {c["id"]: c["name"] for c in categories}
    lines = []
    for (image, category), m in sorted(united.items()):
        lines.append(f"{image} {name[category]} {rle(m)}")
    (folder / "classes.txt").write_text("\n".join(lines) + "\n")
    single = [f"{o['image_id']} {name[o['category_id']]} {o['id']} {int(o['area'])}"
              for o in sorted(objects, key=lambda o: (o["image_id"], o["category_id"], o["id"])) if not o["iscrowd"]]
    (folder / "objects.txt").write_text("\n".join(single) + "\n")
    return objects


def refs(objects):
    folder = HERE / "refcoco"
    folder.mkdir(exist_ok=True)
    made = []
    for i, o in enumerate(objects[:9]):
        texts = [" ".join(random.sample(WORDS, 1 + (i + j) % 3)) for j in range(1 + i % 3)]
        made.append({"sent_ids": [10 * i + j for j in range(len(texts))], "file_name": f"COCO_train2014_{i:012d}_{i}.jpg",
                     "ann_id": o["id"], "ref_id": i, "image_id": o["image_id"], "split": ["train", "val", "testA"][i % 3],
                     "sentences": [{"tokens": t.split(), "raw": t.upper(), "sent_id": 10 * i + j, "sent": t} for j, t in enumerate(texts)],
                     "category_id": o["category_id"]})
    # What Python's pickle may write beside: numbers of every size, values that are used twice.
    made[0]["extra"] = [None, True, False, 2**31, -2**40, 1.5, float("inf"), (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {},
                        "x" * 300, made[1]["sentences"], -1, 255, 65536, made[0]["sent_ids"]]
    for protocol in range(6):
        if protocol == 3:  # before, bytes are written as a call
            made[0]["extra"].append(b"bytes")
        pickle.dump(made, open(folder / f"refs(p{protocol}).p", "wb"), protocol=protocol)
    lines = []
    for r in sorted(made, key=lambda r: (r["image_id"] != made[0]["image_id"], r["ref_id"])):
        lines += [f"{r['ref_id']} {r['image_id']} {r['split']}"] + ["  " + s["sent"] for s in r["sentences"]]
    (folder / "expected.txt").write_text("\n".join(lines) + "\n")
    # As Python 2's cPickle wrote them: byte strings with escapes, in protocols 0 and 2.
    ann = objects[0]["id"]
    (folder / "refs(python2).p").write_bytes(
        b"(lp1\n(dp2\nS'ann_id'\np3\nI%d\nsS'split'\np4\nS'train'\np5\nsS'ref_id'\nL7L\nsS'sentences'\n(lp6\n"
        b"(dp7\nS'sent'\nS'the caf\\xc3\\xa9\\'s \"cup\"\\ttab'\nsa(dp8\nS\"raw\"\nVgr\\u00f6\\u00dfer \xe9\nsasa." % ann)
    (folder / "refs(python2b).p").write_bytes(
        b"\x80\x02]q\x01}q\x02(U\x06ann_idq\x03K" + bytes([ann]) + b"U\x05splitq\x04U\x05trainq\x05U\x06ref_idq\x06M\x07\x00"
        b"U\tsentencesq\x07]q\x08}q\tU\x04sentq\nU\x07a man's\x73aua.")

    class Evil:
        def __reduce__(self):
            return (print, ("run",))
    for protocol in (0, 2, 4):
        pickle.dump([{"ann_id": Evil()}], open(folder / f"evil{protocol}.p", "wb"), protocol=protocol)


parquet()
refs(instances())
