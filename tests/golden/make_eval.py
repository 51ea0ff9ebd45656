"""Writes tests/unit/eval_golden.h: figures of an evaluation from NumPy, SciPy and pycocotools.

    python3 -m pip install numpy scipy pycocotools
    python3 tests/golden/make_eval.py >tests/unit/eval_golden.h

Nothing here is the project's own arithmetic: means and medians are NumPy's, correlations SciPy's,
IoU of masks pycocotools'. The weighted case repeats each example as often as its image counts.
"""

import numpy as np
import pycocotools
import scipy
from pycocotools import mask as coco
from scipy import stats

N_IMAGES = 23


def examples(rng):
    """Columns image, truth, area, both, predicted; images have 1 to 9 phrases; edge cases first."""
    rows = [(0, 100, 0, 0, 0.0), (0, 0, 50, 0, 0.13), (1, 0, 0, 0, 0.999), (1, 1, 1, 1, 1.0), (2, 1, 1, 0, 0.1),
            (2, 7, 3, 2, 0.25), (3, 1 << 40, 1 << 40, 1 << 39, 0.3), (3, 2, 1, 1, 0.5)]
    for image in range(4, N_IMAGES):
        for _ in range(rng.integers(1, 10)):
            truth, area = int(rng.integers(1, 40000)), int(rng.integers(0, 40000))
            both = int(rng.integers(0, min(truth, area) + 1)) if rng.random() < 0.6 else min(truth, area)
            # Coarse, so that there are ties.
            rows.append((image, truth, area, both, round(float(rng.random()), 2)))
    return rows


def ratio(a, b, empty):
    return np.where(b > 0, a / np.maximum(b, 1), empty)


def figures(rows):
    image, truth, area, both, predicted = (np.array(c) for c in zip(*rows))
    truth, area, both = (c.astype(np.float64) for c in (truth, area, both))
    empty = ((truth == 0) & (area == 0)).astype(float)
    iou = ratio(both, truth + area - both, empty)
    out = [iou.mean(), np.median(iou), both.sum() / (truth + area - both).sum()]
    out += [(iou > t / 10).mean() for t in (5, 6, 7, 8, 9)]
    out += [ratio(both, area, empty).mean(), ratio(both, truth, empty).mean(), predicted.mean(),
            np.abs(predicted - iou).mean()]
    bin_of = np.minimum((predicted * 10).astype(int), 9)
    bins = [bin_of == b for b in range(10)]
    out.append(sum(k.sum() / len(iou) * abs(predicted[k].mean() - iou[k].mean()) for k in bins if k.any()))
    out.append(stats.pearsonr(predicted, iou).statistic)
    out.append(stats.spearmanr(predicted, iou).statistic)
    return out, [(int(k.sum()), predicted[k].mean() if k.any() else 0, iou[k].mean() if k.any() else 0) for k in bins]


def masks(rng):
    """Pairs of masks with pycocotools' areas and IoU, by NumPy the pixels in both."""
    for k in range(24):
        h, w = int(rng.integers(1, 30)), int(rng.integers(1, 10 if k < 6 else 40))
        yy, xx = np.mgrid[:h, :w]
        pair = []
        for _ in range(2):
            cy, cx, r = rng.random() * h, rng.random() * w, rng.random() * max(h, w) * 0.7
            pair.append(((yy - cy) ** 2 + (xx - cx) ** 2 < r * r).astype(np.uint8))
        if k == 0:
            pair[0][:] = 0
        elif k == 1:
            pair[0][:], pair[1][:] = 1, 1
        elif k == 2:
            pair[0][:], pair[1][:] = 0, 0
            pair[0][h // 2, w // 2] = pair[1][h // 2, w // 2] = 1
        elif k < 6:
            h = min(h, 8)
            pair = [(rng.random((h, w)) < 0.5).astype(np.uint8) for _ in range(2)]
        a, b = (coco.encode(np.asfortranarray(m)) for m in pair)
        yield (w, h, a["counts"].decode(), b["counts"].decode(), int(coco.area(a)), int(coco.area(b)),
               int((pair[0] & pair[1]).sum()), float(coco.iou([a], [b], [0])[0, 0]))


def cluster_bootstrap(rows, replicates=20000):
    """Percentile interval of the mean IoU with images resampled, by NumPy."""
    rng = np.random.default_rng(5)
    image = np.array([r[0] for r in rows])
    iou = np.array([r[3] / (r[1] + r[2] - r[3]) if r[1] + r[2] - r[3] else 1.0 for r in rows])
    total, n = np.bincount(image, iou), np.bincount(image)
    draws = rng.integers(0, N_IMAGES, (replicates, N_IMAGES))
    return np.percentile(total[draws].sum(1) / n[draws].sum(1), [2.5, 97.5])


def c_string(s):
    return '"' + s.replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?") + '"'


def main():
    rng = np.random.default_rng(20261127)
    rows = examples(rng)
    weight = rng.integers(0, 4, N_IMAGES)
    plain, bins = figures(rows)
    repeated, _ = figures([r for r in rows for _ in range(weight[r[0]])])
    low, high = cluster_bootstrap(rows)
    print("/* Made by tests/golden/make_eval.py with NumPy %s, SciPy %s and pycocotools; not edited by hand. */"
          % (np.__version__, scipy.__version__))
    print("/* clang-format off */\nenum { GOLDEN_IMAGES = %d };" % N_IMAGES)
    print("static const pseg_eval_example golden_examples[] = {")
    for r in rows:
        print("    {%d, %dU, %dU, %dU, %r}," % r if r[1] < 1 << 31 else "    {%d, %dULL, %dULL, %dULL, %r}," % r)
    print("};\nstatic const uint32_t golden_weight[GOLDEN_IMAGES] = {\n    %s};" % ", ".join(map(str, weight)))
    for name, values in (("plain", plain), ("weighted", repeated)):
        print("static const double golden_%s[PSEG_EVAL_N_FIGURES] = {\n    %s};"
              % (name, ",\n    ".join("%.15g" % v for v in values)))
    print("static const pseg_eval_reliability golden_bins[PSEG_EVAL_BINS] = {")
    for b in bins:
        print("    {%d, %.15g, %.15g}," % b)
    print("};\n/* Of the mean IoU, 20,000 replicates of NumPy's own numbers. */")
    print("static const double golden_interval[2] = {%.5f, %.5f};" % (low, high))
    print("static const struct {\n    uint32_t width, height;\n    const char *a, *b;\n"
          "    uint64_t area_a, area_b, both;\n    double iou; /* NAN: none, both are empty */\n} golden_masks[] = {")
    for w, h, a, b, aa, ab, both, iou in masks(rng):
        print("    {%d, %d,\n     %s,\n     %s,\n     %d, %d, %d, %s}," % (w, h, c_string(a), c_string(b), aa, ab, both,
                                                        "NAN" if np.isnan(iou) else "%.15g" % iou))
    print("};\n/* clang-format on */")


main()
