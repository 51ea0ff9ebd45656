/* Images by name: files, folders and what lies below them, patterns of the shell. Nothing is
 * sorted, for that would hold all names at once. */
#include "client/batch/json.h"
#include "client/batch/plan.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/utf8.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <glob.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_DEPTH 64

typedef struct walk {
    batch_planner *w;
    uint64_t n; /* images so far: the number that stands for a line */
} walk;

static pseg_status add(walk *k, const char *path, pseg_err *err)
{
    json_t *item =
        json_pack("{s:I, s:o}", "line", (json_int_t)++k->n, "image", batch_json_text(path));

    if (!pseg_utf8_is_valid(path, strlen(path)))
        return batch_planner_add_bad(k->w, item, k->n, PSEG_R_FILE_IO, err,
                                     "the file's name is not UTF-8: %s", path);
    return batch_planner_add(k->w, item, err);
}

static bool is_image(const char *name)
{
    static const char *const endings[] = {".jpg", ".jpeg", ".png",  ".webp",
                                          ".tif", ".tiff", ".heic", ".heif"};
    const char *dot = strrchr(name, '.');

    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0)
            return true;
    return false;
}

/* pattern NULL: all images, and folders below; else the names of this folder that fit. Links to
 * folders are not followed, so that none is met for ever. */
static pseg_status add_folder(walk *k, const char *path, const char *pattern, int depth,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *child = NULL;
    DIR *d = opendir(path);
    struct stat st;

    if (!d)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot open folder %s: %s", path, strerror(errno));
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (e->d_name[0] == '.' && (!pattern || pattern[0] != '.'))
            continue;
        if (pattern && fnmatch(pattern, e->d_name, FNM_PERIOD) != 0)
            continue;
        pseg_free(child);
        child = strcmp(path, ".") == 0 && pattern ? pseg_strdup(e->d_name)
                                                  : pseg_path_join(path, e->d_name);
        if (!child)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        bool is_there = lstat(child, &st) == 0, is_folder = is_there && S_ISDIR(st.st_mode);
        if (!is_folder && (pattern || is_image(e->d_name)))
            PSEG_TRY(add(k, child, err));
        else if (is_folder && !pattern && depth < MAX_DEPTH)
            PSEG_TRY(add_folder(k, child, NULL, depth + 1, err));
    }
out:
    if (d)
        closedir(d);
    pseg_free(child);
    return rc;
}

/* The folders of a pattern are looked up by glob; the names in each, which may be many, are not. */
static pseg_status add_pattern(walk *k, const char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    glob_t folders = {0};
    const char *slash = strrchr(text, '/'), *name = slash ? slash + 1 : text;
    char *parent =
        slash ? pseg_strndup(text, slash == text ? 1 : (size_t)(slash - text)) : pseg_strdup(".");
    uint64_t before = k->n;

    if (!parent)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    int how = glob(parent, GLOB_ONLYDIR, NULL, &folders);
    if (how != 0 && how != GLOB_NOMATCH)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot look for %s", text);
    for (size_t i = 0; i < folders.gl_pathc; i++)
        PSEG_TRY(add_folder(k, folders.gl_pathv[i], name, 0, err));
    if (k->n == before)
        PSEG_FAIL(PSEG_R_FILE_NOT_FOUND, 0, "no file fits the pattern %s", text);
out:
    globfree(&folders);
    pseg_free(parent);
    return rc;
}

pseg_status batch_read_images(batch_planner *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const batch_source *s = batch_planner_source(w);
    walk k = {.w = w};
    struct stat st;

    for (size_t i = 0; i < s->n_names; i++) {
        const char *name = s->names[i];
        bool is_there = stat(name, &st) == 0;
        if (is_there && S_ISDIR(st.st_mode))
            PSEG_TRY(add_folder(&k, name, NULL, 0, err));
        else if (!is_there && strpbrk(name, "*?["))
            PSEG_TRY(add_pattern(&k, name, err));
        else if (!is_there && s->n_names == 1)
            PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                      "cannot open %s: %s", name, strerror(errno));
        else
            PSEG_TRY(add(&k, name, err));
    }
out:
    return rc;
}
