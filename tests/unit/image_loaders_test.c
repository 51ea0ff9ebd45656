/* Broken files that begin like a format that is taken: they are refused as what they begin like,
 * and libvips asks no library of another format about them. */
#include "tests/unit/image_support.h"

#include <stdio.h>

static const pseg_image_limits usual = PSEG_IMAGE_LIMITS_DEFAULT;

/* ImageMagick loads its modules, one a format, when it is first asked about any bytes. */
static bool has_foreign_module(void)
{
    char line[1024];
    bool found = false;
    FILE *f = fopen("/proc/self/maps", "r");

    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        found = found || (strstr(line, "ImageMagick") && strstr(line, "/coders/"));
    fclose(f);
    return found;
}

/* Without HEIC in libvips, that is what is said of a broken one, too. */
static bool has_heif(void)
{
    pseg_image *i = NULL;
    size_t n;
    uint8_t *file = read_fixture("rgb.heic", &n);
    pseg_status rc = pseg_image_decode(&i, file, n, &usual, NULL);

    pseg_image_free(i);
    pseg_free(file);
    return rc == PSEG_OK;
}

static void refused(const char *format, const uint8_t *bytes, size_t n, pseg_reason reason)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_image *i = NULL;
    uint8_t *own = pseg_memdup(bytes, n); /* so that reading past it shows */

    assert_non_null(own);
    pseg_status rc = pseg_image_decode(&i, own, n, &usual, &err);
    if (rc == PSEG_OK || i || err.reason != reason || !strstr(err.msg, format) ||
        strstr(err.msg, "magick"))
        fail_msg("%zu bytes like a %s image: reason %d instead of %d, \"%s\"", n, format,
                 (int)err.reason, (int)reason, err.msg);
    if (has_foreign_module())
        fail_msg("%zu bytes like a %s image were shown to ImageMagick", n, format);
    pseg_err_clear(&err);
    pseg_free(own);
}

static void broken_files_reach_one_loader(void **state)
{
    static const struct {
        const char *format, *magic;
        size_t n;
    } starts[] = {
        {"JPEG", "\xff\xd8\xff", 3},
        {"PNG", "\x89PNG\r\n\x1a\n", 8},
        {"WebP", "RIFF\x40\0\0\0WEBP", 12},
        {"TIFF", "II*\0", 4},
        {"TIFF", "MM\0*", 4},
        {"TIFF", "II+\0", 4},
        {"TIFF", "MM\0+", 4},
        {"HEIF",
         "\0\0\0\x18"
         "ftypheic",
         12},
        {"HEIF",
         "\0\0\0\x18"
         "ftypavis",
         12},
        {"HEIF",
         "\0\0\0\x18"
         "ftyphevx",
         12},
        {"HEIF",
         "\x7f\0\0\0"
         "ftypmif1",
         12},
    };
    static const uint8_t fills[] = {0, 0xa5, 0xff};
    bool heif = has_heif();

    (void)state;
    assert_false(has_foreign_module());
    for (size_t s = 0; s < sizeof starts / sizeof *starts; s++)
        for (size_t f = 0; f < sizeof fills; f++) {
            uint8_t bytes[256];
            pseg_reason reason = heif || strcmp(starts[s].format, "HEIF") != 0
                                     ? PSEG_R_IMAGE_UNDECODABLE
                                     : PSEG_R_IMAGE_FORMAT_UNSUPPORTED;

            memset(bytes, fills[f], sizeof bytes);
            memcpy(bytes, starts[s].magic, starts[s].n);
            refused(starts[s].format, bytes, starts[s].n, reason);
            refused(starts[s].format, bytes, sizeof bytes, reason);
        }
}

static int set_up(void **state)
{
    (void)state;
    return pseg_image_init(NULL) == PSEG_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    pseg_image_shutdown();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(broken_files_reach_one_loader)};

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
