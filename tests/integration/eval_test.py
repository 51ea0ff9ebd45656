#!/usr/bin/env python3
"""`pseg eval` from end to end, on the model in the box: its figures computed again from its records,
data sets with faults, controls, comparisons, thresholds, and what it refuses. See lib_eval.py."""
import json
import pathlib
import signal
import statistics
import subprocess
import tempfile

from lib_eval import BIN, ENV, evaluate, main, records, run, scenes, write_lines

TMP = tempfile.TemporaryDirectory(prefix="pseg-eval-")
DIR = pathlib.Path(TMP.name)


def near(got, want, tolerance=1e-6):
    assert abs(got - want) <= tolerance, f"{got} is not {want}"


def iou(truth, area, both):
    union = truth + area - both
    return both / union if union else 1.0


def check_figures(report, which, rows):
    """rows: (truth, area, both, predicted or None)."""
    f = {k: v["value"] for k, v in report["runs"][which]["figures"].items()}
    ious = [iou(*r[:3]) for r in rows]
    assert report["runs"][which]["phrases"] == len(rows)
    near(f["mean_iou"], statistics.fmean(ious))
    near(f["median_iou"], statistics.median(ious))
    near(f["ciou"], sum(r[2] for r in rows) / sum(r[0] + r[1] - r[2] for r in rows))
    for t in (0.5, 0.6, 0.7, 0.8, 0.9):
        near(f[f"precision_at_{t}"], sum(x > t for x in ious) / len(ious))
    near(f["mean_precision"], statistics.fmean(r[2] / r[1] if r[1] else 0 for r in rows))
    near(f["mean_recall"], statistics.fmean(r[2] / r[0] for r in rows))
    histogram = [0] * 20
    for x in ious:
        histogram[min(int(x * 20), 19)] += 1
    assert report["runs"][which]["iou_histogram"] == histogram
    if rows[0][3] is not None:
        near(f["mean_predicted_iou"], statistics.fmean(r[3] for r in rows))
        near(f["predicted_iou_mae"], statistics.fmean(abs(r[3] - x) for r, x in zip(rows, ious)))
    for name, i in report["runs"][which]["figures"].items():
        if i["value"] is not None and i["low"] is not None:
            assert i["low"] <= i["high"], (name, i)


def figures_follow_from_records():
    report, _ = evaluate(DIR / "a", "--data", "scenes:0-11", "--records")
    rows = records(DIR / "a")
    assert report["schema"] == "pseg-eval/1" and report["data"]["phrases"] == len(rows) == report["data"]["phrases_planned"]
    assert report["data"]["images"] == 12 and not any(report["data"]["left_out"].values())
    check_figures(report, "own", [(r["truth_px"], r["area_px"], r["both_px"], r["predicted_iou"]) for r in rows])
    for which in ("shuffled", "swapped"):
        check_figures(report, which, [(r["truth_px"], r[which]["area_px"], r[which]["both_px"],
                                       r[which]["predicted_iou"]) for r in rows if which in r])
    check_figures(report, "painted", [(r["truth_px"], r["width_px"] * r["height_px"], r["truth_px"], None)
                                      for r in rows])
    # The model in the box reads: it does well, and badly with any other phrase.
    mean = {w: report["runs"][w]["figures"]["mean_iou"]["value"] for w in ("own", "shuffled", "swapped", "painted")}
    assert mean["own"] > 0.7 and mean["shuffled"] < 0.4 and mean["swapped"] < 0.15 and mean["painted"] < 0.1, mean
    of_image = {}
    for r in rows:
        of_image.setdefault(r["image"], set()).add(r["phrase"])
    for r in rows:
        assert r["shuffled"]["phrase"] not in of_image[r["image"]], r
        assert r["swapped"]["phrase"] in of_image[r["image"]] - {r["phrase"]}, r
    for name, groups in report["groups"].items():
        n = sum(g["phrases"] for g in groups)
        assert n == len(rows) or (name == "relation" and n > len(rows)), (name, n)
    by_kind = {g["label"]: g for g in report["groups"]["kind"]}
    for kind, g in by_kind.items():
        of = [r["iou"] for r in rows if r["kind"] == kind]
        assert g["phrases"] == len(of)
        near(g["mean_iou"]["value"], statistics.fmean(of))
    by_length = {g["label"]: g for g in report["groups"]["phrase_length"]}
    of = [r["iou"] for r in rows if len(r["phrase"].split()) == 4]
    near(by_length["4"]["mean_iou"]["value"], statistics.fmean(of))
    assert sum(b["phrases"] for b in report["reliability"]) == len(rows)
    best, worst = max(r["iou"] for r in rows), min(r["iou"] for r in rows)
    near([c for c in report["cases"] if c["kind"] == "best"][0]["iou"], best)
    near([c for c in report["cases"] if c["kind"] == "worst"][0]["iou"], worst)


def runs_repeat_themselves():
    """Whatever the number of threads and the size of batches."""
    reports = []
    for i, more in enumerate((["--readers", 1, "--batch", 1], ["--readers", 3, "--batch", 5])):
        report, _ = evaluate(DIR / f"same{i}", "--data", "scenes:20-26@128", "--no-cases", "--records", *more)
        reports.append((report, records(DIR / f"same{i}")))
    (a, rows_a), (b, rows_b) = reports
    assert [(r["image"], r["phrase"], r["shuffled"]["phrase"]) for r in rows_a] == \
        [(r["image"], r["phrase"], r["shuffled"]["phrase"]) for r in rows_b]
    for x, y in zip(rows_a, rows_b):
        assert abs(x["area_px"] - y["area_px"]) <= 2, (x, y)  # another batch, another order of sums
    for name, i in a["runs"]["own"]["figures"].items():
        for end in ("value", "low", "high"):
            near(i[end], b["runs"]["own"]["figures"][name][end], 2e-3)
    assert a["data"]["digest"] == b["data"]["digest"] and a["model"]["digest"] == b["model"]["digest"]
    c, _ = evaluate(DIR / "same2", "--data", "scenes:20-26@128", "--no-cases", "--records", "--readers", 3,
                    "--batch", 5, "--seed", 1)
    assert c["runs"]["own"]["figures"]["mean_iou"]["value"] == b["runs"]["own"]["figures"]["mean_iou"]["value"]
    assert c["runs"]["own"]["figures"]["mean_iou"]["low"] != b["runs"]["own"]["figures"]["mean_iou"]["low"]


def files_give_what_the_generator_gives():
    """The same scenes, through PNG, JSON lines and compressed masks."""
    lines = scenes(DIR / "set", 40, 6)
    drawn, _ = evaluate(DIR / "drawn", "--data", "scenes:40-45@96", "--records", "--no-cases", "--no-shuffle")
    read, _ = evaluate(DIR / "read", "--data", DIR / "set", "--records", "--no-cases", "--no-shuffle")

    def rows(name):
        return sorted((r["phrase"], r["kind"], r["truth_px"], r["area_px"], r["both_px"]) for r in records(DIR / name))
    assert rows("drawn") == rows("read")
    # Phrases about one object have one target, though each stands with a mask of its own.
    targets = {(r["image"], r["target"]): set() for r in records(DIR / "read")}
    for r in records(DIR / "read"):
        targets[r["image"], r["target"]].add(r["sentence"])
    wanted = {(line["image"], s["target"]) for line in lines for s in line["samples"]}
    assert len(targets) == len(wanted) and all(t == set(range(len(t))) for t in targets.values())
    assert "shuffled" not in read["runs"]
    half, _ = evaluate(DIR / "half", "--data", DIR / "set", "--split", "last:2", "--no-cases", "--replicates", 0)
    assert half["data"]["images"] == 2 and half["runs"]["own"]["figures"]["mean_iou"]["low"] is None


def faults_are_counted_and_left_out():
    lines = scenes(DIR / "bad", 60, 8)
    other_size = scenes(DIR / "bigger", 62, 1, size=128)
    folder = DIR / "bad"
    (folder / lines[0]["image"]).write_bytes((folder / lines[0]["image"]).read_bytes()[:500])
    (folder / lines[1]["image"]).unlink()
    (folder / lines[2]["image"]).write_bytes((DIR / "bigger" / other_size[0]["image"]).read_bytes())
    lines[3] = "{not json"
    lines[4]["samples"][0]["mask"]["counts"] = "P" * 7
    lines[5]["samples"][0]["mask"] = {"counts": "`" + chr(48 + 9), "size": [96, 96]}
    lines[6]["samples"][0]["sentences"] = ["   "]
    lines[5]["samples"][0]["area"] = 0
    path = write_lines(folder, lines)
    report, err = evaluate(DIR / "badout", "--data", path, "--no-cases")
    left = report["data"]["left_out"]
    assert left["image_broken"] == 1 and left["image_missing"] == 1, left
    assert left["bad_record"] == 1 and left["mask_broken"] >= 1 and left["phrase_bad"] == 1, left
    assert left["mask_size"] == len({s["target"] for s in lines[2]["samples"]}), left
    assert report["data"]["phrases"] < report["data"]["phrases_planned"]
    for word in ("image_broken", "image_missing", "bad_record", "scenes.jsonl:4"):
        assert word in err, (word, err)
    # Nothing is left: an error, and no files.
    for line in lines[4:8]:
        (folder / line["image"]).unlink()
    evaluate(DIR / "nothing", "--data", path, "--no-cases", status=2)


def comparisons_are_paired():
    evaluate(DIR / "one", "--data", "scenes:80-85", "--records", "--no-cases")
    report, _ = evaluate(DIR / "two", "--data", "scenes:80-85", "--no-cases", "--threshold", 0.9, "--compare",
                         DIR / "one" / "report.json")
    c = report["compared_with"]
    assert c["phrases"] == report["data"]["phrases"] and c["only_here"] == c["only_there"] == 0
    for name, d in c["difference"].items():
        near(d["value"], c["here"][name]["value"] - c["there"][name]["value"])
    d = c["difference"]["mean_recall"]
    assert d["high"] < 0, d  # a higher threshold paints less
    wide = report["runs"]["own"]["figures"]["mean_recall"]
    assert d["high"] - d["low"] < wide["high"] - wide["low"], "paired intervals are the narrower ones"
    # With itself: nothing differs.
    report, _ = evaluate(DIR / "three", "--data", "scenes:82-90", "--no-cases", "--compare", DIR / "one")
    c = report["compared_with"]
    assert (c["images"], c["better"], c["worse"]) == (4, 0, 0) and c["only_here"] > 0 and c["only_there"] > 0, c
    assert c["difference"]["mean_iou"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    _, err = evaluate(DIR / "four", "--data", "scenes:80-85", "--no-cases", "--compare", DIR / "two", status=2)
    assert "--records" in err
    _, err = evaluate(DIR / "four", "--data", "scenes:1-2", "--no-cases", "--compare", DIR / "one", status=2)
    assert "none of the" in err
    (DIR / "odd.jsonl").write_text('{"image": 3}\n')
    _, err = evaluate(DIR / "four", "--data", "scenes:1-2", "--no-cases", "--compare", DIR / "odd.jsonl", status=2)
    assert "odd.jsonl:1" in err


def thresholds_are_tuned_apart():
    report, _ = evaluate(DIR / "tuned", "--data", "scenes:0-3", "--no-cases", "--tune", "scenes:500000-500003")
    s = report["threshold_sweep"]
    best = max(s["thresholds"], key=lambda t: t["mean_iou"]["value"])
    near(best["mean_iou"]["value"], [t for t in s["thresholds"] if t["threshold"] == s["best_threshold"]][0]
         ["mean_iou"]["value"])
    assert len(s["thresholds"]) == 19 and s["images"] == 4 and report["settings"]["threshold"] == 0.5
    assert report["runs"]["tuned"]["phrases"] == report["data"]["phrases"]
    # At 0.5 on the images of the sweep themselves, the figure of a run on those.
    there, _ = evaluate(DIR / "there", "--data", "scenes:500000-500003", "--no-cases")
    at_half = [t for t in s["thresholds"] if abs(t["threshold"] - 0.5) < 1e-6][0]
    near(at_half["mean_iou"]["value"], there["runs"]["own"]["figures"]["mean_iou"]["value"])
    _, err = evaluate(DIR / "leak", "--data", "scenes:0-3", "--no-cases", "--tune", "scenes:3-7", status=2)
    assert "seed 3" in err and "1 images" in err, err


def learning_curves_are_read():
    log = DIR / "log.jsonl"
    log.write_text('{"type":"step","step":1,"epoch":0,"loss":1.5}\n{"type":"epoch","epoch":0,"loss":1.2,"iou":0.3,'
                   '"val_loss":1.1,"val_iou":0.35}\nnot json\n{"type":"epoch","epoch":1,"loss":0.9,"val_iou":0.5}\n'
                   '{"type":"epoch","epo')
    evaluate(DIR / "curves", "--data", "scenes:0-1", "--no-cases", "--log", log)
    assert "Learning curves" in (DIR / "curves" / "report.html").read_text()
    log.write_text("{}\n")
    _, err = evaluate(DIR / "nocurves", "--data", "scenes:0-1", "--log", log, status=2)
    assert "no epoch" in err


def mistakes_are_refused():
    for words, argv in (("--data PATH", []), ("scenes:FIRST-LAST", ["--data", "scenes:9-3"]),
                        ("32 px", ["--data", "scenes:0-1@32"]), ("--format", ["--data", DIR, "--format", "odd"]),
                        ("empty", ["--data", "scenes:0-1", "--model", "empty"]),
                        ("--tune-data", ["--data", "scenes:0-1", "--tune-data", DIR]),
                        ("--replicates", ["--data", "scenes:0-1", "--replicates", "-1"])):
        _, err = evaluate(DIR / "refused", *argv, status=2)
        assert words in err, (words, err)
    _, err = evaluate(DIR / "refused", "--data", DIR / "not there", status=3)
    assert "not there" in err
    (DIR / "file").write_text("")
    out, err = run("pseg-eval", "--data", "scenes:0-1", "--no-cases", "--out", DIR / "file", "--json", status=1)
    assert json.loads(out)["error"]["reason"] == "FILE_IO"


def a_stopped_run_writes_nothing():
    out = DIR / "stopped"
    p = subprocess.Popen([BIN / "pseg-eval", "--data", "scenes:0-999999", "--out", out, "--verbose"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    try:
        line = p.stderr.readline()  # of the model's opening: the handler is there
        assert line, "nothing was logged"
        p.send_signal(signal.SIGINT)
        text, err = p.communicate(timeout=120)
    finally:
        p.kill()
        p.wait()
    assert p.returncode == 1 and text == b"" and b"(CANCELLED)" in err, (p.returncode, err)
    assert not out.exists()


main([figures_follow_from_records, runs_repeat_themselves, files_give_what_the_generator_gives,
      faults_are_counted_and_left_out, comparisons_are_paired, thresholds_are_tuned_apart,
      learning_curves_are_read, mistakes_are_refused, a_stopped_run_writes_nothing])
