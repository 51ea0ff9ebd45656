#!/usr/bin/python3
"""Makes the images of this folder, expected.ppm and cases.h: python3 make_images.py [--check].

Photos in every format that pseg reads or refuses, what Pillow and its ImageCms (LittleCMS) say
their pixels are, and digests of what Pillow's BICUBIC and numpy make of a picture of noise. The
committed files were made on Debian 12: Python 3.11, Pillow 9.4, numpy 1.24, libvips 8.14 with
libheif 1.15 (through ctypes, for HEIC and AVIF only). With --check nothing is written; the resize
and preprocess digests are compared with those of the Pillow at hand, and, where PyTorch is, with
preprocess() of tests/golden/pseg_reference.py.
"""
import ctypes
import hashlib
import io
import pathlib
import struct
import sys
import zlib

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps

HERE = pathlib.Path(__file__).resolve().parent
W, H = 24, 16
expected = []  # (name, uint8 [h, w, 3])


# ---- sources: smooth, so that lossy formats stay near; no symmetry, so that turns are seen ----

def smooth(w=W, h=H):
    x, y = np.meshgrid(np.linspace(0, 1, w), np.linspace(0, 1, h))
    return np.rint(np.stack([255 * x, 255 * y, 200 - 160 * x * y], -1)).astype(np.uint8)


def ramp(bits, n):
    """n channels of the full range at `bits` bits."""
    x, y = np.meshgrid(np.linspace(0, 1, W), np.linspace(0, 1, H))
    planes = [x, y, 1 - x * y, (1 - x + y) / 2]
    return np.rint(np.stack(planes[:n], -1) * (2 ** bits - 1)).astype(np.int64)


def on_white(rgb, alpha, top):
    a = alpha[..., None] / top
    return np.rint((rgb / top * a + 1 - a) * 255).astype(np.uint8)


def expect(name, pixels):
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, -1)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    expected.append((name, pixels))


def save(name, data):
    (HERE / name).write_bytes(data)


def pillow(name, image, want=None, **kw):
    """Saves by Pillow; expects `want`, or what Pillow reads back."""
    out = io.BytesIO()
    image.save(out, Image.registered_extensions()[pathlib.Path(name).suffix], **kw)
    save(name, out.getvalue())
    if want is None:
        want = np.asarray(ImageOps.exif_transpose(Image.open(out)).convert("RGB"))
    expect(name, want)


# ---- PNG by hand: Pillow writes neither 16-bit colour nor interlaced files ----

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, bits, colour, before=(), interlace=False):
    """values [h, w, channels] of `bits` bits."""
    def rows(v):
        if v.size == 0:
            return b""
        if bits == 16:
            packed = v.astype(">u2").reshape(v.shape[0], -1).view(np.uint8)
        elif bits == 8:
            packed = v.astype(np.uint8).reshape(v.shape[0], -1)
        else:
            flat = v.reshape(v.shape[0], -1, 1)
            b = (flat >> np.arange(bits - 1, -1, -1) & 1).reshape(v.shape[0], -1)
            packed = np.packbits(b.astype(np.uint8), axis=1)
        return b"".join(b"\0" + r.tobytes() for r in packed)

    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
             (1, 0, 2, 1)]
    body = b"".join(rows(values[y::dy, x::dx]) for y, x, dy, dx in adam7) if interlace \
        else rows(values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(*c) for c in before)
            + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b""))


def make_png():
    v = ramp(8, 4)
    pillow("rgb.png", Image.fromarray(smooth()))
    pillow("grey.png", Image.fromarray(v[..., 0].astype(np.uint8)))
    for name, bits, colour, n in [("grey_alpha.png", 8, 4, 2), ("rgba.png", 8, 6, 4),
                                  ("rgb16.png", 16, 2, 3), ("rgba16.png", 16, 6, 4),
                                  ("grey16.png", 16, 0, 1), ("grey_alpha16.png", 16, 4, 2),
                                  ("grey4.png", 4, 0, 1), ("bit1.png", 1, 0, 1)]:
        v, top = ramp(bits, n), 2 ** bits - 1
        save(name, png(v, bits, colour))
        rgb = v[..., :1] if n < 3 else v[..., :3]
        alpha = v[..., -1] if n in (2, 4) else np.full(v.shape[:2], top)
        expect(name, np.broadcast_to(on_white(rgb, alpha, top), (H, W, 3)))
    v = ramp(8, 3)
    save("interlaced.png", png(v, 8, 2, interlace=True))
    expect("interlaced.png", v.astype(np.uint8))
    # Palettes of 16 colours; the second has a transparency of its own for the first 8.
    index = (np.add.outer(np.arange(H) * 3, np.arange(W)) % 16)[..., None]
    colours = np.random.default_rng(5).integers(0, 256, (16, 3))
    see_through = np.arange(0, 256, 32)
    plte = (b"PLTE", colours.astype(np.uint8).tobytes())
    save("palette.png", png(index, 4, 3, [plte]))
    expect("palette.png", colours[index[..., 0]].astype(np.uint8))
    save("palette_trns.png", png(index, 4, 3, [plte, (b"tRNS", bytes(see_through.tolist()))]))
    alpha = np.concatenate([see_through, np.full(8, 255)])[index[..., 0]]
    expect("palette_trns.png", on_white(colours[index[..., 0]], alpha, 255))
    # One colour of an image without alpha may be declared transparent.
    v = ramp(8, 3) // 64 * 64
    key = v[9, 13]
    save("rgb_trns.png", png(v, 8, 2, [(b"tRNS", struct.pack(">HHH", *key))]))
    expect("rgb_trns.png",
           np.where((v == key).all(-1, keepdims=True), 255, v).astype(np.uint8))


# ---- profiles by hand ----

def s15(*values):
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def profile(kind, space, pcs, tags):
    """An ICC version 2 profile of the tags [(signature, data)]."""
    tags = [(b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"pseg\0" + bytes(78)),
            (b"cprt", b"text\0\0\0\0CC0\0"), (b"wtpt", b"XYZ \0\0\0\0" + s15(0.9642, 1, 0.8249))] + tags
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for sig, data in tags:
        data += bytes(-len(data) % 4)
        table += sig + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s6H4sIIIIQI", at + len(body), b"\0\0\0\0", 0x02400000, kind, space, pcs,
                       2026, 1, 1, 0, 0, 0, b"acsp", 0, 0, 0, 0, 0, 0) + s15(0.9642, 1, 0.8249)
    head += bytes(128 - len(head))
    return head + struct.pack(">I", len(tags)) + table + body


def matrix_profile(columns, curve):
    xyz = [(t, b"XYZ \0\0\0\0" + s15(*c)) for t, c in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns)]
    return profile(b"mntr", b"RGB ", b"XYZ ", xyz + [(t, curve) for t in (b"rTRC", b"gTRC", b"bTRC")])


def curve(function, n=256):
    y = np.rint(function(np.linspace(0, 1, n)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", n) + y.tobytes()


def srgb_curve(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


GAMMA = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.19921875 * 256)) + bytes(2)
P3 = matrix_profile([(0.515102, 0.241182, -0.001050), (0.291965, 0.692236, 0.041882),
                     (0.157153, 0.066582, 0.784378)], curve(srgb_curve))
ADOBE = matrix_profile([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087),
                        (0.14919, 0.06322, 0.74457)], GAMMA)
DARK_GREY = profile(b"mntr", b"GRAY", b"XYZ ",
                    [(b"kTRC", b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + bytes(2))])


def cmyk_profile():
    """Lab at the 16 corners of CMYK, linear between: inks on slightly yellow paper."""
    ink = {0: (0, 0.6, 0.9), 1: (0.85, 0, 0.5), 2: (0.95, 0.9, 0)}
    lab = []
    for i in range(16):
        on = [i >> 3 & 1, i >> 2 & 1, i >> 1 & 1]
        rgb = np.array([0.98, 0.97, 0.92])
        for c in range(3):
            if on[c]:
                rgb = rgb * np.array(ink[c])
        rgb = rgb * (0.08 if i & 1 else 1)
        xyz = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606],
                        [0.0139, 0.0971, 0.7141]]) @ rgb / np.array([0.9642, 1, 0.8249])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab += [(116 * f[1] - 16) * 2.55, 500 * (f[0] - f[1]) + 128, 200 * (f[1] - f[2]) + 128]
    clut = bytes(np.clip(np.rint(lab), 0, 255).astype(np.uint8))
    line = bytes(range(256))
    lut = (b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + line * 4 + clut
           + line * 3)
    return profile(b"prtr", b"CMYK", b"Lab ", [(b"A2B0", lut)])


def managed(image, icc):
    """As LittleCMS converts to sRGB, perceptual."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return np.asarray(ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"),
                                                renderingIntent=0, outputMode="RGB"))


def make_profiles():
    image = Image.fromarray(smooth())
    pillow("p3.png", image, managed(image, P3), icc_profile=P3)
    pillow("adobe.png", image, managed(image, ADOBE), icc_profile=ADOBE)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=0, icc_profile=P3)
    save("p3.jpg", out.getvalue())
    expect("p3.jpg", managed(Image.open(out), P3))
    lossless = io.BytesIO()
    image.save(lossless, "WEBP", lossless=True, icc_profile=ADOBE)
    save("adobe.webp", lossless.getvalue())
    expect("adobe.webp", managed(image, ADOBE))
    # The alpha channel is not a colour.
    save("p3_alpha.png", png(ramp(8, 4), 8, 6,
                             [(b"iCCP", b"p\0\0" + zlib.compress(P3))]))
    rgb = managed(Image.fromarray(ramp(8, 3).astype(np.uint8)), P3)
    expect("p3_alpha.png", on_white(rgb, ramp(8, 4)[..., 3], 255))
    save("p3_16.png", png(ramp(16, 3), 16, 2, [(b"iCCP", b"p\0\0" + zlib.compress(P3))]))
    expect("p3_16.png", managed(Image.fromarray(np.rint(ramp(16, 3) / 257).astype(np.uint8)), P3))
    save("p3_alpha16.png", png(ramp(8, 4) * 257, 16, 6,
                               [(b"iCCP", b"p\0\0" + zlib.compress(P3))]))
    expect("p3_alpha16.png", on_white(rgb, ramp(8, 4)[..., 3], 255))
    grey = Image.fromarray(ramp(8, 1)[..., 0].astype(np.uint8))
    out = io.BytesIO()
    grey.save(out, "PNG", icc_profile=DARK_GREY)
    save("grey_icc.png", out.getvalue())
    expect("grey_icc.png", managed(grey, DARK_GREY))
    # Profiles that cannot be meant, or read: the pixels stay as they are.
    pillow("wrong_icc.jpg", grey, quality=95, icc_profile=P3)
    # rgb.jpg with a grey profile put in: the same pixels.
    rgb, cut = (HERE / "rgb.jpg").read_bytes(), 4 + int.from_bytes((HERE / "rgb.jpg").read_bytes()[4:6], "big")
    chunk = b"ICC_PROFILE\0\1\1" + DARK_GREY
    save("rgb_grey_icc.jpg", rgb[:cut] + b"\xff\xe2" + (len(chunk) + 2).to_bytes(2, "big") + chunk + rgb[cut:])
    pillow("broken_icc.jpg", image, quality=95, subsampling=0, icc_profile=P3[:200])
    cmyk = Image.fromarray(ramp(8, 4).astype(np.uint8), "CMYK")
    out = io.BytesIO()
    cmyk.save(out, "JPEG", quality=98, subsampling=0, icc_profile=cmyk_profile())
    save("cmyk_icc.jpg", out.getvalue())
    expect("cmyk_icc.jpg", managed(Image.open(out), cmyk_profile()))
    # Without a profile there is no right answer: the test looks at white, black and the inks.
    inks = np.zeros((16, 48, 4), np.uint8)
    for k in range(4):
        inks[:, 8 + 8 * k:16 + 8 * k, k] = 255
    inks[:, 40:, :] = 255
    Image.fromarray(inks, "CMYK").save(HERE / "cmyk.jpg", quality=98, subsampling=0)
    Image.fromarray(inks, "CMYK").save(HERE / "cmyk.tif", compression="tiff_lzw")


# ---- turned pictures ----

# What a camera must have stored for the picture to be upright once turned as the tag says.
STORED = {1: None, 2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM,
          5: Image.TRANSPOSE, 6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}


def make_turned():
    upright = Image.fromarray(smooth())
    for tag in range(0, 10):
        exif = Image.Exif()
        exif[0x112] = tag
        stored = upright.transpose(STORED[tag]) if STORED.get(tag) is not None else upright
        out = io.BytesIO()
        stored.save(out, "JPEG", quality=95, subsampling=0, exif=exif)
        save(f"turn{tag}.jpg", out.getvalue())
        seen = np.asarray(ImageOps.exif_transpose(Image.open(out)).convert("RGB"))
        assert abs(seen.astype(int) - smooth()).max() < 12, tag
        expect(f"turn{tag}.jpg", seen)
    # Sides that 2, 4 and 8 do not divide, for decoding to a part of them.
    odd = Image.fromarray(smooth(61, 45))
    for tag in (1, 3, 6):
        exif = Image.Exif()
        exif[0x112] = tag
        stored = odd.transpose(STORED[tag]) if STORED.get(tag) is not None else odd
        out = io.BytesIO()
        stored.save(out, "JPEG", quality=95, exif=exif)
        save(f"odd{tag}.jpg", out.getvalue())
    exif = Image.Exif()
    exif[0x112] = 6
    stored = upright.transpose(Image.ROTATE_90)
    pillow("turn6.png", stored, smooth(), exif=exif)
    pillow("turn6.webp", stored, smooth(), lossless=True, exif=exif)
    pillow("turn6.tif", stored, smooth(), compression="tiff_lzw", tiffinfo={274: 6})
    alpha = Image.fromarray(ramp(8, 4).astype(np.uint8)).transpose(STORED[5])
    exif[0x112] = 5
    pillow("turn5_alpha.png", alpha, on_white(ramp(8, 3), ramp(8, 4)[..., 3], 255), exif=exif)


# ---- the other formats, and what is refused ----

def vips_save(name, pixels, **kw):
    """Through libvips, for the formats that Pillow lacks."""
    vips = ctypes.CDLL("libvips.so.42")
    vips.vips_image_new_from_memory.restype = ctypes.c_void_p
    assert vips.vips_init(b"x") == 0
    data = np.ascontiguousarray(pixels)
    image = vips.vips_image_new_from_memory(ctypes.c_void_p(data.ctypes.data),
                                            ctypes.c_size_t(data.nbytes), data.shape[1],
                                            data.shape[0], data.shape[2], 0)
    srgb = ctypes.c_void_p()
    assert vips.vips_copy(ctypes.c_void_p(image), ctypes.byref(srgb), b"interpretation", 22, None) == 0
    options = [x for k, v in kw.items() for x in (k.encode(), v)]
    assert vips.vips_heifsave(srgb, str(HERE / name).encode(), *options, None) == 0


def make_others():
    image = Image.fromarray(smooth())
    rgba = Image.fromarray(ramp(8, 4).astype(np.uint8))
    blended = on_white(ramp(8, 3), ramp(8, 4)[..., 3], 255)
    pillow("rgb.jpg", image, quality=90)
    pillow("progressive.jpg", image, quality=90, progressive=True)
    pillow("grey.jpg", Image.fromarray(ramp(8, 1)[..., 0].astype(np.uint8)), quality=90)
    pillow("rgb.tif", image, compression="tiff_deflate")
    pillow("grey.tif", Image.fromarray(ramp(8, 1)[..., 0].astype(np.uint8)))
    pillow("rgba.tif", rgba, blended, compression="tiff_lzw")
    pillow("bit1.tif", Image.fromarray(ramp(8, 1)[..., 0] > 127))
    pillow("lossy.webp", image, quality=95)
    pillow("lossless.webp", image, lossless=True)
    pillow("alpha.webp", rgba, blended, lossless=True, exact=True)
    # HEIC and AVIF, 64 pixels a side because encoders want it.
    vips_save("rgb.heic", smooth(64, 64), compression=1, Q=95)
    expect("rgb.heic", smooth(64, 64))
    vips_save("rgb.avif", smooth(64, 64), compression=4, Q=95)
    expect("rgb.avif", smooth(64, 64))
    frames = [Image.fromarray(np.roll(smooth(), 3 * k, 1)) for k in range(3)]
    frames[0].save(HERE / "animated.webp", save_all=True, append_images=frames[1:], duration=40)
    frames[0].save(HERE / "pages.tif", save_all=True, append_images=frames[1:], compression="tiff_lzw")
    frames[0].save(HERE / "animated.gif", save_all=True, append_images=frames[1:])
    small = image.resize((8, 8))
    small.save(HERE / "still.gif")
    small.save(HERE / "still.bmp")
    small.save(HERE / "still.jp2")
    image.resize((16, 16)).save(HERE / "still.ico")
    small.save(HERE / "still.pdf")
    save("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>\n')
    save("declared.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>\n')
    save("hello.txt", b"a photo of a cat\n")
    save("empty.jpg", b"")
    # Begins as a film's container does, but is a film.
    save("film.mp4", struct.pack(">I", 24) + b"ftypisom\0\0\2\0isommp41" + struct.pack(">I", 8) + b"mdat")


# ---- resize and preprocess: digests of noise ----

def noise(w, h, hard):
    """As noise() in image_support.c."""
    i = np.arange((3 * w * h + 7) // 8, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    b = z.astype("<u8").view(np.uint8)[:3 * w * h]
    if hard:
        b = np.where(b >= 128, 255, 0).astype(np.uint8)
    return b.reshape(h, w, 3)


def resize(img, w, h):
    """Pillow's BICUBIC across, then down. Pillow 13 takes the passes the other way round where it
    makes the height much smaller than the width; all before it are as here."""
    both = img.resize((w, img.height), Image.BICUBIC).resize((w, h), Image.BICUBIC)
    if int(PIL.__version__.split(".")[0]) < 13:
        assert both.tobytes() == img.resize((w, h), Image.BICUBIC).tobytes()
    return both


RESIZES = [  # w, h, out w, out h
    (7, 5, 23, 31), (64, 48, 9, 7), (1, 1, 5, 7), (1, 9, 6, 1), (9, 1, 1, 6), (2, 2, 224, 224),
    (5, 4, 5, 4), (40, 30, 20, 30), (40, 30, 40, 15), (40, 30, 41, 30), (40, 30, 40, 29),
    (640, 480, 224, 224), (333, 500, 224, 224), (500, 333, 112, 167), (2000, 3, 5, 300),
    (3, 2000, 300, 5), (4000, 1, 1, 1), (1, 4000, 1, 1), (1000, 1000, 1, 1), (3, 3, 2, 2),
    (1023, 767, 518, 518), (224, 224, 518, 518), (1600, 1200, 224, 224), (17, 301, 301, 17),
    (32768, 2, 224, 224), (99, 99, 33, 33), (97, 89, 98, 90), (6, 6, 4096, 1)]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FITS = ["squash", "letterbox", "centre_crop"]
PREPARES = [  # fit, w, h, input w, input h, edge, (mean, std)
    (0, 640, 480, 224, 224, 0, IMAGENET), (0, 31, 57, 56, 28, 0, HALF), (0, 224, 224, 224, 224, 0, IMAGENET),
    (0, 1, 1, 28, 28, 0, IMAGENET), (0, 3000, 2, 56, 56, 0, HALF),
    (1, 640, 480, 224, 224, 0, IMAGENET), (1, 480, 640, 224, 224, 0, IMAGENET), (1, 31, 57, 56, 28, 0, HALF),
    (1, 224, 224, 224, 224, 0, IMAGENET), (1, 1, 1, 28, 28, 0, IMAGENET), (1, 3000, 2, 56, 56, 0, HALF),
    (1, 2, 3000, 56, 42, 0, HALF), (1, 101, 100, 28, 28, 0, IMAGENET), (1, 100, 67, 45, 31, 0, IMAGENET),
    (2, 640, 480, 224, 224, 256, IMAGENET), (2, 480, 640, 224, 224, 256, IMAGENET),
    (2, 31, 57, 56, 56, 64, HALF), (2, 256, 256, 224, 224, 256, IMAGENET), (2, 1, 1, 28, 28, 32, IMAGENET),
    (2, 300, 2, 56, 56, 64, HALF), (2, 2, 301, 56, 56, 64, HALF), (2, 101, 100, 28, 28, 33, IMAGENET),
    # The crop is larger than what is cropped: black around it.
    (2, 60, 60, 56, 56, 40, IMAGENET), (2, 90, 61, 57, 56, 41, IMAGENET), (2, 61, 90, 57, 56, 41, HALF)]


def prepare(img, fit, w, h, edge, mean_std):
    """preprocess() of tests/golden/pseg_reference.py, and the part of the photo that it covers."""
    mean, std = (np.asarray(v, np.float32) for v in mean_std)

    def resized(nw, nh):
        same = (nw, nh) == img.size
        return np.asarray(img if same else resize(img, nw, nh), np.float32)

    def norm(x):
        return (x / np.float32(255) - mean) / std

    left = top = 0
    nw, nh = w, h
    if fit == 0:
        out = norm(resized(w, h))
    elif fit == 1:
        s = min(w / img.width, h / img.height)
        nw, nh = max(1, min(w, round(img.width * s))), max(1, min(h, round(img.height * s)))
        out = np.zeros((h, w, 3), np.float32)
        top, left = (h - nh) // 2, (w - nw) // 2
        out[top:top + nh, left:left + nw] = norm(resized(nw, nh))
    else:
        short, long = sorted(img.size)
        other = int(edge * long / short)
        nw, nh = (edge, other) if img.width <= img.height else (other, edge)
        x = resized(nw, nh)
        top, left = -((nh - h) // 2), -((nw - w) // 2)
        full = np.zeros((h, w, 3), np.float32)  # as Hugging Face's center_crop pads
        y0, x0 = max(0, top), max(0, left)
        part = x[max(0, -top):, max(0, -left):][:h - y0, :w - x0]
        full[y0:y0 + part.shape[0], x0:x0 + part.shape[1]] = part
        out = norm(full)
    chw = np.ascontiguousarray(out.transpose(2, 0, 1), "<f4")
    rect = [-left * img.width / nw, -top * img.height / nh,
            (w - left) * img.width / nw, (h - top) * img.height / nh]
    return chw, rect


def check_reference(img, fit, w, h, chw):
    try:
        sys.path.insert(0, str(HERE.parents[2] / "golden"))
        import pseg_reference as ref
    except ImportError:
        return False
    cfg = ref.PsegConfig(preprocess=FITS[fit], image_size=(h, w))
    assert np.array_equal(ref.preprocess(img, cfg)[0].numpy(), chw), (FITS[fit], img.size)
    return True


def cases():
    lines = ["/* Made by make_images.py: SHA-256 of what Pillow and numpy make of noise(). */",
             "static const struct resize_case {", "    uint32_t w, h, out_w, out_h;", "    bool hard;",
             "    const char *sha256;", "} resize_cases[] = {"]
    for w, h, ow, oh in RESIZES:
        for hard in (False, True):
            img = Image.fromarray(noise(w, h, hard))
            out = np.asarray(resize(img, ow, oh))
            lines.append(f"    {{{w}, {h}, {ow}, {oh}, {str(hard).lower()},")
            lines.append(f'     "{hashlib.sha256(out.tobytes()).hexdigest()}"}},')
    lines += ["};", "", "static const struct prepare_case {", "    uint32_t w, h;", "    pseg_preprocess how;",
              "    double rect[4];", "    float first, middle; /* of the first channel */",
              "    const char *sha256; /* of the floats, little-endian */", "} prepare_cases[] = {"]
    checked = 0
    for fit, w, h, iw, ih, edge, norm in PREPARES:
        img = Image.fromarray(noise(w, h, False))
        chw, rect = prepare(img, fit, iw, ih, edge, norm)
        if norm is IMAGENET and (fit != 2 or (edge == 256 * ih // 224 and iw <= edge)):
            checked += check_reference(img, fit, iw, ih, chw)
        numbers = [", ".join(f"{x}f" for x in v) for v in norm]
        lines.append(f"    {{{w}, {h}, {{PSEG_IMAGE_{FITS[fit].upper()}, {iw}, {ih}, {edge}, "
                     f"{{{numbers[0]}}}, {{{numbers[1]}}}}},")
        lines.append(f"     {{{', '.join(repr(float(r)) for r in rect)}}},")
        lines.append(f"     {float(chw[0, 0, 0])!r}f, {float(chw[0, ih // 2, iw // 2])!r}f,")
        lines.append(f'     "{hashlib.sha256(chw.tobytes()).hexdigest()}"}},')
    lines.append("};")
    print(f"{2 * len(RESIZES)} resizes, {len(PREPARES)} inputs, {checked} of them equal to pseg_reference.py")
    return "\n".join(lines) + "\n"


if "--check" in sys.argv:
    sys.exit((HERE / "cases.h").read_text() != cases())
(HERE / "cases.h").write_text(cases())
make_png()
make_profiles()
make_turned()
make_others()
with open(HERE / "expected.ppm", "wb") as f:  # netpbm allows many pictures in one file
    for name, pixels in expected:
        f.write(f"P6\n# {name}\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode() + pixels.tobytes())
print(f"{len(expected)} pictures, {sum(p.stat().st_size for p in HERE.iterdir())} bytes in all")
