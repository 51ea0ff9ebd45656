#include "common/image/image.h"
#include "common/base/alloc.h"

#include <ctype.h>
#include <pthread.h>
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

static bool is_heif_brand(const uint8_t *d)
{
    static const char brands[][5] = {"heic", "heix", "hevc", "hevx", "heim", "heis",
                                     "hevm", "hevs", "mif1", "msf1", "avif", "avis"};

    for (size_t i = 0; i < sizeof brands / sizeof *brands; i++)
        if (memcmp(d, brands[i], 4) == 0)
            return true;
    return false;
}

static bool is_text(const uint8_t *d, size_t n)
{
    for (size_t i = 0; i < n && i < 64; i++)
        if (!isprint(d[i]) && !isspace(d[i]))
            return false;
    return true;
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
    if (n >= 4 && (memcmp(d, "II*\0", 4) == 0 || memcmp(d, "MM\0*", 4) == 0 ||
                   memcmp(d, "II+\0", 4) == 0 || memcmp(d, "MM\0+", 4) == 0))
        return "TIFF";
    if (n >= 12 && memcmp(d + 4, "ftyp", 4) == 0 && is_heif_brand(d + 8))
        return "HEIF";
    *what = n >= 12 && memcmp(d + 4, "ftyp", 4) == 0 ? "a video"
            : is_text(d, n)                          ? "text"
                                                     : "something unknown";
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (n >= others[i].n && memcmp(d, others[i].magic, others[i].n) == 0)
            *what = others[i].name;
    return NULL;
}

/* One decoding. libvips keeps the messages of all threads in one buffer, so what it says is only
 * read by a decoding that runs alone: see attempt_and_explain. */
typedef struct attempt {
    const void *data;
    size_t len;
    const pseg_image_limits *limits;
    pseg_image_info info;
    bool alone;
    bool unexplained; /* libvips failed, and why was not read because others run beside */
} attempt;

/* Never PSEG_OK. What libvips says becomes one line. */
static pseg_status undecodable(attempt *a, pseg_err *err)
{
    char text[200] = "";

    a->unexplained = !a->alone;
    if (a->alone)
        snprintf(text, sizeof text, "%s", vips_error_buffer());
    vips_error_clear();
    for (char *p = text; *p; p++)
        if (*p == '\n')
            *p = p[1] ? ';' : '\0';
    if (strstr(text, "out of memory"))
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                            "no memory to decode a %s image", a->info.format);
    return pseg_err_set(err, PSEG_R_IMAGE_UNDECODABLE, 0, PSEG_HERE,
                        "the %s image cannot be decoded: %s; save it anew", a->info.format,
                        *text ? text : "it is damaged");
}

static pseg_status check_bytes(size_t n, size_t most, pseg_err *err)
{
    if (n <= most)
        return PSEG_OK;
    pseg_status rc =
        pseg_err_set(err, PSEG_R_IMAGE_TOO_LARGE, 0, PSEG_HERE,
                     "image of %zu bytes is over the limit of %zu; recompress it", n, most);
    pseg_err_value(err, "%zu", n);
    pseg_err_limit(err, "%zu", most);
    return rc;
}

/* Holds what the header says against the limits. */
static pseg_status check_header(const pseg_image_info *i, const pseg_image_limits *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if ((uint64_t)i->width * i->height > l->max_pixels || i->width > l->max_side ||
        i->height > l->max_side) {
        rc = pseg_err_set(
            err, PSEG_R_IMAGE_TOO_MANY_PIXELS, 0, PSEG_HERE,
            "image of %u x %u pixels is over the limit of %llu pixels or %u a side; shrink it",
            i->width, i->height, (unsigned long long)l->max_pixels, l->max_side);
        pseg_err_value(err, "%u x %u", i->width, i->height);
        pseg_err_limit(err, "%llu pixels, %u a side", (unsigned long long)l->max_pixels,
                       l->max_side);
    } else if (i->frames > l->max_frames) {
        rc = pseg_err_set(err, PSEG_R_IMAGE_TOO_MANY_FRAMES, 0, PSEG_HERE,
                          "image of %u frames or pages is over the limit of %u; send one",
                          i->frames, l->max_frames);
        pseg_err_value(err, "%u", i->frames);
        pseg_err_limit(err, "%u", l->max_frames);
    }
    return rc;
}

/* Opens the header and holds it against the limits. */
static pseg_status open_header(VipsImage **out, attempt *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *what = "";
    VipsImage *v = NULL;
    int pages = 1;

    *out = NULL;
    if (a->len == 0)
        PSEG_FAIL(PSEG_R_IMAGE_MISSING, 0, "the image is empty; send its bytes");
    PSEG_TRY(check_bytes(a->len, a->limits->max_bytes, err));
    a->info.format = sniff(a->data, a->len, &what);
    if (!a->info.format)
        PSEG_FAIL(PSEG_R_IMAGE_FORMAT_UNSUPPORTED, 0,
                  "the image is %s; send JPEG, PNG, WebP, TIFF or HEIC", what);
    if (!vips_foreign_find_load_buffer(a->data, a->len)) {
        vips_error_clear();
        PSEG_FAIL(PSEG_R_IMAGE_FORMAT_UNSUPPORTED, 0,
                  "this installation of libvips cannot read the %s image; send JPEG or PNG",
                  a->info.format);
    }
    v = vips_image_new_from_buffer(a->data, a->len, "", "access", VIPS_ACCESS_SEQUENTIAL, "fail_on",
                                   VIPS_FAIL_ON_TRUNCATED, NULL);
    if (!v)
        PSEG_TRY(undecodable(a, err));
    bool turned = vips_image_get_orientation_swap(v);
    uint32_t w = (uint32_t)vips_image_get_width(v), h = (uint32_t)vips_image_get_height(v);
    a->info.width = turned ? h : w;
    a->info.height = turned ? w : h;
    /* vips_image_get_n_pages calls 10,000 and more pages one. */
    if (vips_image_get_typeof(v, VIPS_META_N_PAGES) &&
        vips_image_get_int(v, VIPS_META_N_PAGES, &pages))
        pages = 1;
    a->info.frames = pages > 1 ? (uint32_t)pages : 1;
    PSEG_TRY(check_header(&a->info, a->limits, err));
    *out = v;
    v = NULL;
out:
    if (v)
        g_object_unref(v);
    return rc;
}

typedef int (*step_fn)(VipsImage *in, VipsImage **out);

/* libvips 8.14 converts the colours of a 16-bit picture by its profile to 8 bits, and leaves its
 * alpha channel at 16: such a picture becomes one of 8 bits first. */
static int alpha_fits(VipsImage *in, VipsImage **out)
{
    VipsInterpretation space = vips_image_get_interpretation(in);
    VipsImage *eight = NULL;

    if (!vips_image_hasalpha(in) || !vips_image_get_typeof(in, VIPS_META_ICC_NAME) ||
        (space != VIPS_INTERPRETATION_RGB16 && space != VIPS_INTERPRETATION_GREY16))
        return vips_copy(in, out, NULL);
    space = space == VIPS_INTERPRETATION_RGB16 ? VIPS_INTERPRETATION_sRGB : VIPS_INTERPRETATION_B_W;
    if (vips_cast(in, &eight, VIPS_FORMAT_UCHAR, "shift", TRUE, NULL))
        return -1;
    int rc = vips_copy(eight, out, "interpretation", space, NULL);
    g_object_unref(eight);
    return rc;
}

static int to_srgb(VipsImage *in, VipsImage **out)
{
    /* A profile that does not fit its pixels is worth less than none. Depth: libvips 8.14 gives 8
     * bits unless told, 8.16 what it got. */
    if (vips_image_get_typeof(in, VIPS_META_ICC_NAME) &&
        vips_icc_transform(in, out, "srgb", "embedded", TRUE, "intent", VIPS_INTENT_PERCEPTUAL,
                           "depth", 8, NULL) == 0)
        return 0;
    vips_error_clear();
    return vips_colourspace(in, out, VIPS_INTERPRETATION_sRGB, NULL);
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

/* Where pixel (x, y) of a stored picture of w x h lies in the upright one, counted in pixels. The
 * EXIF orientations: 1 as stored, 2 mirrored, 3 upside down, 4 both, 5 to 8 the same with rows and
 * columns exchanged. */
static int64_t upright_place(int orientation, int64_t w, int64_t h, int64_t x, int64_t y)
{
    switch (orientation) {
    case 2:
        return y * w + (w - 1 - x);
    case 3:
        return (h - 1 - y) * w + (w - 1 - x);
    case 4:
        return (h - 1 - y) * w + x;
    case 5:
        return x * h + y;
    case 6:
        return x * h + (h - 1 - y);
    case 7:
        return (w - 1 - x) * h + (h - 1 - y);
    case 8:
        return (w - 1 - x) * h + y;
    default:
        return y * w + x;
    }
}

/* Takes the rows as they are decoded and puts each pixel where it belongs, so that there is one
 * copy of the picture in memory, not one for each step. */
static int take_pixels(uint8_t *rgb, VipsImage *v, int orientation)
{
    enum { ROWS = 16 };
    int w = vips_image_get_width(v), h = vips_image_get_height(v), rc = 0;
    int64_t origin = upright_place(orientation, w, h, 0, 0);
    int64_t right = upright_place(orientation, w, h, 1, 0) - origin;
    VipsRegion *region = vips_region_new(v);

    if (!region)
        return -1;
    for (int top = 0; top < h && rc == 0; top += ROWS) {
        VipsRect rows = {0, top, w, h - top < ROWS ? h - top : ROWS};
        rc = vips_region_prepare(region, &rows);
        for (int y = top; y < top + rows.height && rc == 0; y++) {
            const uint8_t *p = VIPS_REGION_ADDR(region, 0, y);
            uint8_t *q = rgb + 3 * upright_place(orientation, w, h, 0, y);
            if (right == 1)
                memcpy(q, p, 3 * (size_t)w);
            else
                for (int x = 0; x < w; x++, p += 3, q += 3 * right)
                    memcpy(q, p, 3);
        }
    }
    g_object_unref(region);
    return rc;
}

static pseg_status decode(pseg_image **out, attempt *a, pseg_err *err)
{
    static const step_fn steps[] = {alpha_fits, to_srgb, opaque, bytes};
    pseg_status rc = PSEG_OK;
    VipsImage *v = NULL, *next = NULL;
    pseg_image *i = NULL;

    *out = NULL;
    PSEG_TRY(open_header(&v, a, err));
    int orientation = vips_image_get_orientation(v);
    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        if (steps[k](v, &next))
            PSEG_TRY(undecodable(a, err));
        g_object_unref(v);
        v = next;
    }
    if (vips_image_get_bands(v) != 3)
        PSEG_FAIL(PSEG_R_IMAGE_UNDECODABLE, 0,
                  "the %s image has %d channels after conversion; save it as RGB", a->info.format,
                  vips_image_get_bands(v));
    i = pseg_calloc(1, sizeof *i);
    if (i)
        i->rgb = pseg_malloc(3 * (size_t)a->info.width * a->info.height);
    if (!i || !i->rgb)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image of %u x %u", a->info.width,
                  a->info.height);
    i->width = a->info.width;
    i->height = a->info.height;
    if (take_pixels(i->rgb, v, orientation))
        PSEG_TRY(undecodable(a, err));
    *out = i;
    i = NULL;
out:
    if (v)
        g_object_unref(v);
    pseg_image_free(i);
    return rc;
}

static pseg_status probe(pseg_image **none, attempt *a, pseg_err *err)
{
    VipsImage *v = NULL;
    pseg_status rc = open_header(&v, a, err);

    (void)none;
    if (v)
        g_object_unref(v);
    return rc;
}

/* Decodings run side by side. One at which libvips failed is repeated alone, so that the message,
 * and whether memory was short, are its own and not those of a neighbour. */
static pseg_status attempt_and_explain(pseg_status (*what)(pseg_image **, attempt *, pseg_err *),
                                       pseg_image **out, attempt *a, pseg_err *err)
{
    /* A decoding that waits to be alone goes before those that come after it. */
    static pthread_rwlock_t running = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

    pthread_rwlock_rdlock(&running);
    pseg_status rc = what(out, a, err);
    pthread_rwlock_unlock(&running);
    if (a->unexplained) {
        pthread_rwlock_wrlock(&running);
        vips_error_clear();
        a->alone = true;
        if (err)
            pseg_err_clear(err);
        rc = what(out, a, err);
        pthread_rwlock_unlock(&running);
    }
    vips_thread_shutdown();
    return rc;
}

pseg_status pseg_image_probe(pseg_image_info *out, const void *data, size_t len,
                             const pseg_image_limits *limits, pseg_err *err)
{
    attempt a = {.data = data, .len = len, .limits = limits};
    pseg_status rc = attempt_and_explain(probe, NULL, &a, err);

    *out = a.info;
    return rc;
}

pseg_status pseg_image_decode(pseg_image **out, const void *data, size_t len,
                              const pseg_image_limits *limits, pseg_err *err)
{
    attempt a = {.data = data, .len = len, .limits = limits};

    return attempt_and_explain(decode, out, &a, err);
}

void pseg_image_free(pseg_image *i)
{
    if (!i)
        return;
    pseg_free(i->rgb);
    pseg_free(i);
}
