#!/usr/bin/env python3
"""report.html in a real browser, headless, driven through its debugging pipe: no request leaves the
page, nothing is written to the console, every picture is shown, nothing is wider than the window, and
text can be read in light and dark. And what data may not do to it: phrases and names that are markup,
and a hundred thousand phrases. See lib_eval.py; skipped where there is no Chromium."""
import html.parser
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import tempfile
import time

from lib_eval import ENV, evaluate, main, scenes, write_lines

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TMP = tempfile.TemporaryDirectory(prefix="pseg-eval-page-")
DIR = pathlib.Path(TMP.name)
HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'><svg/onload=alert(1)>",
           "</title></style></svg><h1>owned</h1>", "left \u202egnp.gpj\u202c right \u2066x", "&lt;b&gt; &amp; \\u003c",
           "]]> --> <!-- \u2028 \ufeff", "http://example.com/x.png javascript:alert(1)", "{{7*7}} ${7*7} %s %n %99999d",
           "\u05d0\u05d1 \u0645\u0631 \U0001F600 " + "long " * 200]


class Browser:
    """Messages of the Chrome DevTools Protocol: JSON with a NUL behind each, on descriptors 3 and 4."""

    def __init__(self):
        to_read, self.to = os.pipe()
        self.of, from_write = os.pipe()
        # A shell puts the two where the browser looks for them.
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--hide-scrollbars", f"--user-data-dir={DIR / 'profile'}", "about:blank"]
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "sh", BROWSER, *flags], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(to_read, from_write),
            env={**ENV, "HOME": str(DIR)})
        os.close(to_read)
        os.close(from_write)
        self.rest, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def read(self, deadline):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.of], [], [], max(0, deadline - time.monotonic()))
            more = os.read(self.of, 1 << 20) if ready else b""
            assert more, "the browser says nothing more"
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            got = self.read(deadline)
            if got.get("id") == self.number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def wait_for(self, method):
        deadline = time.monotonic() + 60
        while not any(e.get("method") == method for e in self.events):
            self.events.append(self.read(deadline))

    def value(self, script):
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def open(self, path, width):
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=f"file://{path}")
        self.wait_for("Page.loadEventFired")
        self.value("document.querySelectorAll('details').forEach(d => d.open = true)")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        os.close(self.of)


CONTRAST = r"""(() => {
  const parse = c => c.match(/[\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = parse(c).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 :
    Math.pow((v + 0.055) / 1.055, 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if ((parse(c)[3] ?? 1) === 1) return c; } return 'rgb(255, 255, 255)'; };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('title, desc')) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const a = light(svg ? style.fill : style.color), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 120)];
  }
  return worst; })()"""


def check_page(browser, path):
    for width in (1200, 360):
        browser.open(path, width)
        urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
        assert urls and urls[0] == f"file://{path}", str(urls)[:300]
        assert all(u.startswith(("file://" + str(path), "data:")) for u in urls), [u[:80] for u in urls]
        noise = [e for e in browser.events if e.get("method") in
                 ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded",
                  "Page.javascriptDialogOpening")]
        assert not noise, str(noise[:2])[:600]
        wide = browser.value("document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} px wide in a window of {width} px"
    broken = browser.value("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0, f"{broken} pictures are not shown"
    assert browser.value("[...document.images].every(i => i.alt.length > 8)")
    assert browser.value("[...document.querySelectorAll('svg')].every(s => s.getAttribute('role') === 'img' && "
                         "s.querySelector('title').textContent && s.querySelector('desc').textContent)")
    outside = browser.value(
        "[...document.querySelectorAll('svg *')].filter(e => e.getBBox && !e.closest('title, desc')).filter(e => { "
        "const b = e.getBoundingClientRect(), s = e.ownerSVGElement.getBoundingClientRect(); return b.width + b.height "
        "> 0 && (b.left < s.left - 2 || b.right > s.right + 2 || b.top < s.top - 2 || b.bottom > s.bottom + 2); })"
        ".map(e => e.outerHTML).slice(0, 3)")
    assert outside == [], outside
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        ratio, what = browser.value(CONTRAST)
        assert ratio >= 4.5, f"{scheme}: contrast {ratio:.2f} of {what}"


class Reader(html.parser.HTMLParser):
    """What tags and attributes a page has, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.odd, self.words, self.stack = {}, [], [], []
        self.feed(text)

    VOID = {"meta", "link", "img", "br", "circle", "rect", "path"}

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in self.VOID:
            self.stack.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href", "xlink:href", "action", "style") and
                                         not (value or "").startswith(("#", "data:image/jpeg;base64,", "data:,"))):
                self.odd.append((tag, name, value))

    def handle_endtag(self, tag):
        if tag in self.stack:
            while self.stack.pop() not in (tag, None) and self.stack:
                pass

    def handle_data(self, data):
        self.words.append(data)


def read_page(path):
    text = path.read_text()
    page = Reader(text)
    assert not page.odd, page.odd[:3]
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(page.tags), page.tags
    assert not re.search(r"(src|href)=\"?(https?:)?//", text)
    return text, page


def the_page_stands_alone():
    evaluate(DIR / "plain", "--data", "scenes:0-9", "--tune", "scenes:500000-500001")
    _, page = read_page(DIR / "plain" / "report.html")
    assert page.tags["svg"] >= 8 and page.tags["img"] == 54, page.tags
    browser = Browser()
    try:
        check_page(browser, DIR / "plain" / "report.html")
        shown = browser.value("[...document.querySelectorAll('h2')].map(e => e.textContent)")
        assert {"Figures", "Distribution of IoU", "Cases", "How it was made"} <= set(shown), shown
    finally:
        browser.close()


def hostile_phrases_are_text():
    lines = scenes(DIR / "hostile", 30, len(HOSTILE))
    for line, text in zip(lines, HOSTILE):
        for k, s in enumerate(line["samples"]):
            s["sentences"], s["category"] = [f"{text} {k}"], text
        line["samples"] = line["samples"][:2]
    path = write_lines(DIR / "hostile", lines)
    evaluate(DIR / "out", "--data", path, "--records", "--title", HOSTILE[0] + HOSTILE[3])
    text, page = read_page(DIR / "out" / "report.html")
    assert page.tags["h1"] == 1 and page.tags["title"] == 1 + page.tags["svg"] and page.tags["style"] == 1, page.tags
    assert "\u202e" not in text and "\u2066" not in text and "\u2028" not in text and "\ufeff" not in text
    words = "".join(page.words)
    assert "<script>alert(1)</script>" in words and "%99999d" in words, "phrases are not shown as they are"
    rows = [json.loads(line) for line in (DIR / "out" / "records.jsonl").read_text().strip().split("\n")]
    assert {r["category"] for r in rows} == set(HOSTILE), "the records have them unchanged"
    browser = Browser()
    try:
        check_page(browser, DIR / "out" / "report.html")
        assert browser.value("document.querySelectorAll('h1').length") == 1
        assert browser.value("document.querySelectorAll('svg').length") == page.tags["svg"]
    finally:
        browser.close()


if not BROWSER:
    print("skipped: no chromium")
    raise SystemExit(77)
main([the_page_stands_alone, hostile_phrases_are_text])
