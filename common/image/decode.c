#include "common/image/image.h"
#include "common/base/alloc.h"

#include <string.h>
#include <vips/vips.h>

/* What libvips warns of also makes a call fail, and the failure says it. */
static void say_nothing(const gchar *domain, GLogLevelFlags level, const gchar *message,
                        gpointer ud)
{
    (void)domain;
    (void)level;
    (void)message;
    (void)ud;
}

pseg_status pseg_image_init(pseg_err *err)
{
    static const char *const allowed[] = {"VipsForeignLoadJpeg", "VipsForeignLoadPng",
                                          "VipsForeignLoadWebp", "VipsForeignLoadTiff",
                                          "VipsForeignLoadHeif"};
    pseg_status rc = PSEG_OK;

    if (vips_init("pseg"))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start libvips: %s", vips_error_buffer());
    g_log_set_handler("VIPS",
                      (GLogLevelFlags)(G_LOG_LEVEL_WARNING | G_LOG_LEVEL_INFO | G_LOG_LEVEL_DEBUG),
                      say_nothing, NULL);
    vips_concurrency_set(1); /* callers bring their own threads */
    vips_cache_set_max(0);
    vips_block_untrusted_set(TRUE);
    vips_operation_block_set("VipsForeignLoad", TRUE);
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        vips_operation_block_set(allowed[i], FALSE);
out:
    return rc;
}

void pseg_image_shutdown(void)
{
    vips_shutdown();
}

/* What the first bytes say; NULL: nothing that is let in, and *what tells what else it may be. */
static const char *sniff(const uint8_t *d, size_t n, const char **what)
{
    static const struct {
        const char *magic, *name;
        size_t n;
    } others[] = {{"GIF8", "a GIF", 4},   {"%PDF", "a PDF", 4}, {"BM", "a BMP", 2},
                  {"<svg", "an SVG", 4},  {"<?xml", "XML", 5},  {"\0\0\1\0", "an icon", 4},
                  {"PK\3\4", "a ZIP", 4}, {"8BPS", "a PSD", 4}, {"\xff\x0a", "a JPEG XL", 2}};

    if (n >= 3 && memcmp(d, "\xff\xd8\xff", 3) == 0)
        return "JPEG";
    if (n >= 8 && memcmp(d, "\x89PNG\r\n\x1a\n", 8) == 0)
        return "PNG";
    if (n >= 12 && memcmp(d, "RIFF", 4) == 0 && memcmp(d + 8, "WEBP", 4) == 0)
        return "WebP";
    if (n >= 4 && (memcmp(d, "II*\0", 4) == 0 || memcmp(d, "MM\0*", 4) == 0))
        return "TIFF";
    if (n >= 12 && memcmp(d + 4, "ftyp", 4) == 0)
        return "HEIF";
    *what = "something unknown";
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (n >= others[i].n && memcmp(d, others[i].magic, others[i].n) == 0)
            *what = others[i].name;
    return NULL;
}

/* libvips keeps its messages in one buffer: taken as one line, and cleared. */
static pseg_status undecodable(pseg_err *err, const char *format)
{
    char text[200];

    snprintf(text, sizeof text, "%s", vips_error_buffer());
    vips_error_clear();
    for (char *p = text; *p; p++)
        if (*p == '\n')
            *p = p[1] ? ';' : '\0';
    if (strstr(text, "out of memory"))
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                            "no memory to decode a %s image", format);
    return pseg_err_set(err, PSEG_R_IMAGE_UNDECODABLE, 0, PSEG_HERE,
                        "the %s image cannot be decoded: %s", format,
                        *text ? text : "it is damaged");
}

/* Opens the header and holds it against the limits. */
static pseg_status open_header(VipsImage **out, pseg_image_info *info, const void *data, size_t len,
                               const pseg_image_limits *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *what = "";
    VipsImage *v = NULL;

    *out = NULL;
    if (len == 0)
        PSEG_FAIL(PSEG_R_IMAGE_MISSING, 0, "the image is empty");
    if (len > l->max_bytes)
        PSEG_FAIL(PSEG_R_IMAGE_TOO_LARGE, 0,
                  "image of %zu bytes is over the limit of %zu; recompress it", len, l->max_bytes);
    info->format = sniff(data, len, &what);
    if (!info->format)
        PSEG_FAIL(PSEG_R_IMAGE_FORMAT_UNSUPPORTED, 0,
                  "the image is %s; send JPEG, PNG, WebP, TIFF or HEIC", what);
    v = vips_image_new_from_buffer(data, len, "", "access", VIPS_ACCESS_SEQUENTIAL, "fail_on",
                                   VIPS_FAIL_ON_TRUNCATED, NULL);
    if (!v && strstr(vips_error_buffer(), "not in a known format")) {
        vips_error_clear();
        PSEG_FAIL(PSEG_R_IMAGE_FORMAT_UNSUPPORTED, 0,
                  "this installation of libvips cannot read %s images", info->format);
    }
    if (!v) {
        rc = undecodable(err, info->format);
        goto out;
    }
    bool turned = vips_image_get_orientation_swap(v);
    uint64_t w = (uint64_t)vips_image_get_width(v), h = (uint64_t)vips_image_get_height(v);
    info->width = (uint32_t)(turned ? h : w);
    info->height = (uint32_t)(turned ? w : h);
    info->frames = (uint32_t)vips_image_get_n_pages(v);
    if (w * h > l->max_pixels || w > l->max_side || h > l->max_side)
        PSEG_FAIL(
            PSEG_R_IMAGE_TOO_MANY_PIXELS, 0,
            "image of %u x %u pixels is over the limit of %llu pixels or %u a side; shrink it",
            info->width, info->height, (unsigned long long)l->max_pixels, l->max_side);
    if (info->frames > l->max_frames)
        PSEG_FAIL(PSEG_R_IMAGE_TOO_MANY_FRAMES, 0,
                  "image of %u frames or pages is over the limit of %u; send one", info->frames,
                  l->max_frames);
    *out = v;
    v = NULL;
out:
    if (v)
        g_object_unref(v);
    return rc;
}

pseg_status pseg_image_probe(pseg_image_info *out, const void *data, size_t len,
                             const pseg_image_limits *limits, pseg_err *err)
{
    VipsImage *v;
    pseg_status rc = open_header(&v, out, data, len, limits, err);

    if (v)
        g_object_unref(v);
    vips_thread_shutdown();
    return rc;
}

typedef int (*step_fn)(VipsImage *in, VipsImage **out);

static int to_srgb(VipsImage *in, VipsImage **out)
{
    /* A profile that does not fit its pixels is worth less than none. */
    if (vips_image_get_typeof(in, VIPS_META_ICC_NAME) &&
        vips_icc_transform(in, out, "srgb", "embedded", TRUE, "intent", VIPS_INTENT_PERCEPTUAL,
                           NULL) == 0)
        return 0;
    vips_error_clear();
    return vips_colourspace(in, out, VIPS_INTERPRETATION_sRGB, NULL);
}

static int upright(VipsImage *in, VipsImage **out)
{
    /* Turning reads the rows out of order, so the picture must be in memory. */
    VipsImage *whole = vips_image_get_orientation(in) > 1 ? vips_image_copy_memory(in) : NULL;

    if (!whole)
        return vips_image_get_orientation(in) > 1 ? -1 : vips_copy(in, out, NULL);
    int rc = vips_autorot(whole, out, NULL);
    g_object_unref(whole);
    return rc;
}

static int opaque(VipsImage *in, VipsImage **out)
{
    double white = 255;

    if (!vips_image_hasalpha(in))
        return vips_copy(in, out, NULL);
    VipsArrayDouble *background = vips_array_double_new(&white, 1);
    int rc = vips_flatten(in, out, "background", background, NULL);
    vips_area_unref(VIPS_AREA(background));
    return rc;
}

static int bytes(VipsImage *in, VipsImage **out)
{
    return vips_cast(in, out, VIPS_FORMAT_UCHAR, NULL);
}

pseg_status pseg_image_decode(pseg_image **out, const void *data, size_t len,
                              const pseg_image_limits *limits, pseg_err *err)
{
    static const step_fn steps[] = {to_srgb, opaque, bytes, upright};
    pseg_status rc = PSEG_OK;
    pseg_image_info info = {0};
    VipsImage *v = NULL, *next = NULL;
    pseg_image *i = NULL;
    size_t n = 0;

    *out = NULL;
    PSEG_TRY(open_header(&v, &info, data, len, limits, err));
    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        if (steps[k](v, &next)) {
            rc = undecodable(err, info.format);
            goto out;
        }
        g_object_unref(v);
        v = next;
    }
    if (vips_image_get_bands(v) != 3)
        PSEG_FAIL(PSEG_R_IMAGE_UNDECODABLE, 0, "the %s image has %d channels after conversion",
                  info.format, vips_image_get_bands(v));
    void *pixels = vips_image_write_to_memory(v, &n);
    if (!pixels) {
        rc = undecodable(err, info.format);
        goto out;
    }
    i = pseg_calloc(1, sizeof *i);
    if (i) {
        i->width = (uint32_t)vips_image_get_width(v);
        i->height = (uint32_t)vips_image_get_height(v);
        i->rgb = pseg_memdup(pixels, n);
    }
    g_free(pixels);
    if (!i || !i->rgb)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image of %zu bytes", n);
    *out = i;
    i = NULL;
out:
    if (v)
        g_object_unref(v);
    pseg_image_free(i);
    vips_thread_shutdown();
    return rc;
}

void pseg_image_free(pseg_image *i)
{
    if (!i)
        return;
    pseg_free(i->rgb);
    pseg_free(i);
}
