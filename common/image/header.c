#include "common/image/header.h"

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

/* The one loader of a format that is let in. libvips is never asked which of its loaders knows the
 * bytes: that runs the code of formats that are not let in over them. */
typedef struct image_format {
    const char *name, *loader; /* as libvips calls it; a module that is not installed has none */
    int (*load)(void *data, size_t n, VipsImage **out, ...);
} image_format;
static const image_format jpeg = {"JPEG", "jpegload_buffer", vips_jpegload_buffer},
                          png = {"PNG", "pngload_buffer", vips_pngload_buffer},
                          webp = {"WebP", "webpload_buffer", vips_webpload_buffer},
                          tiff = {"TIFF", "tiffload_buffer", vips_tiffload_buffer},
                          heif = {"HEIF", "heifload_buffer", vips_heifload_buffer};

/* What the first bytes say; NULL: nothing that is let in, and *what tells what else it may be. */
static const image_format *sniff(const uint8_t *d, size_t n, const char **what)
{
    static const struct {
        const char *magic, *name;
        size_t n;
    } others[] = {{"GIF8", "a GIF", 4},   {"%PDF", "a PDF", 4}, {"BM", "a BMP", 2},
                  {"<svg", "an SVG", 4},  {"<?xml", "XML", 5},  {"\0\0\1\0", "an icon", 4},
                  {"PK\3\4", "a ZIP", 4}, {"8BPS", "a PSD", 4}, {"\xff\x0a", "a JPEG XL", 2}};

    if (n >= 3 && memcmp(d, "\xff\xd8\xff", 3) == 0)
        return &jpeg;
    if (n >= 8 && memcmp(d, "\x89PNG\r\n\x1a\n", 8) == 0)
        return &png;
    if (n >= 12 && memcmp(d, "RIFF", 4) == 0 && memcmp(d + 8, "WEBP", 4) == 0)
        return &webp;
    if (n >= 4 && (memcmp(d, "II*\0", 4) == 0 || memcmp(d, "MM\0*", 4) == 0 ||
                   memcmp(d, "II+\0", 4) == 0 || memcmp(d, "MM\0+", 4) == 0))
        return &tiff;
    if (n >= 12 && memcmp(d + 4, "ftyp", 4) == 0 && is_heif_brand(d + 8))
        return &heif;
    *what = n >= 12 && memcmp(d + 4, "ftyp", 4) == 0 ? "a video"
            : is_text(d, n)                          ? "text"
                                                     : "something unknown";
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (n >= others[i].n && memcmp(d, others[i].magic, others[i].n) == 0)
            *what = others[i].name;
    return NULL;
}

/* All decodings of the process, for libvips keeps the messages of all threads in one buffer. */
static struct {
    pthread_mutex_t mu;
    unsigned n_running;
    uint64_t n_begun;
} all = {.mu = PTHREAD_MUTEX_INITIALIZER};

pseg_status attempt_failed(attempt *a, pseg_err *err)
{
    char text[200] = "";

    pthread_mutex_lock(&all.mu);
    a->unexplained = !a->was_alone || all.n_begun != a->number;
    if (!a->unexplained)
        snprintf(text, sizeof text, "%s", vips_error_buffer());
    vips_error_clear();
    pthread_mutex_unlock(&all.mu);
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

pseg_status attempt_open(VipsImage **out, attempt *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *what = "";
    VipsImage *v = NULL;
    int pages = 1;

    *out = NULL;
    if (a->len == 0)
        PSEG_FAIL(PSEG_R_IMAGE_MISSING, 0, "the image is empty; send its bytes");
    PSEG_TRY(check_bytes(a->len, a->limits->max_bytes, err));
    const image_format *format = sniff(a->data, a->len, &what);
    if (!format)
        PSEG_FAIL(PSEG_R_IMAGE_FORMAT_UNSUPPORTED, 0,
                  "the image is %s; send JPEG, PNG, WebP, TIFF or HEIC", what);
    a->info.format = format->name;
    if (!vips_type_find("VipsForeignLoad", format->loader))
        PSEG_FAIL(PSEG_R_IMAGE_FORMAT_UNSUPPORTED, 0,
                  "this installation of libvips cannot read the %s image; send JPEG or PNG",
                  format->name);
    /* Read only, though libvips does not say so. */
    if (format->load((void *)(uintptr_t)a->data, a->len, &v, "access", VIPS_ACCESS_SEQUENTIAL,
                     "fail_on", VIPS_FAIL_ON_TRUNCATED, NULL))
        PSEG_TRY(attempt_failed(a, err));
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

pseg_status attempt_reopen_shrunk(VipsImage **v, attempt *a, uint32_t shrink, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    g_object_unref(*v);
    *v = NULL;
    if (vips_jpegload_buffer((void *)(uintptr_t)a->data, a->len, v, "access",
                             VIPS_ACCESS_SEQUENTIAL, "fail_on", VIPS_FAIL_ON_TRUNCATED, "shrink",
                             (int)shrink, NULL))
        PSEG_TRY(attempt_failed(a, err));
out:
    return rc;
}

static pseg_status attempt_once(pseg_status (*what)(void *, attempt *, pseg_err *), void *ud,
                                attempt *a, pseg_err *err)
{
    pthread_mutex_lock(&all.mu);
    a->was_alone = all.n_running++ == 0;
    a->number = ++all.n_begun;
    if (a->was_alone)
        vips_error_clear();
    pthread_mutex_unlock(&all.mu);
    pseg_status rc = what(ud, a, err);
    pthread_mutex_lock(&all.mu);
    all.n_running--;
    pthread_mutex_unlock(&all.mu);
    return rc;
}

pseg_status attempt_run(pseg_status (*what)(void *, attempt *, pseg_err *), void *ud, attempt *a,
                        pseg_err *err)
{
    /* A decoding that waits to be alone goes before those that come after it. */
    static pthread_rwlock_t running = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

    pthread_rwlock_rdlock(&running);
    pseg_status rc = attempt_once(what, ud, a, err);
    pthread_rwlock_unlock(&running);
    if (a->unexplained) {
        pthread_rwlock_wrlock(&running);
        a->unexplained = false;
        if (err)
            pseg_err_clear(err);
        rc = attempt_once(what, ud, a, err);
        pthread_rwlock_unlock(&running);
    }
    vips_thread_shutdown();
    return rc;
}

uint64_t attempts_begun(void)
{
    pthread_mutex_lock(&all.mu);
    uint64_t n = all.n_begun;
    pthread_mutex_unlock(&all.mu);
    return n;
}

static pseg_status probe(void *ud, attempt *a, pseg_err *err)
{
    VipsImage *v = NULL;
    pseg_status rc = attempt_open(&v, a, err);

    (void)ud;
    if (v)
        g_object_unref(v);
    return rc;
}

pseg_status pseg_image_probe(pseg_image_info *out, const void *data, size_t len,
                             const pseg_image_limits *limits, pseg_err *err)
{
    attempt a = {.data = data, .len = len, .limits = limits};
    pseg_status rc = attempt_run(probe, NULL, &a, err);

    *out = a.info;
    return rc;
}
