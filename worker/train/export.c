#include "worker/train/export.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/safetensors_write.h"
#include "worker/model/weights.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE ((size_t)64 << 20) /* of what stands beside the weights */

/* ---- numbers --------------------------------------------------------------------------------- */

static pseg_dtype type_of(const pseg_tensor *t)
{
    return t->type == PSEG_TENSOR_F16    ? PSEG_F16
           : t->type == PSEG_TENSOR_BF16 ? PSEG_BF16
                                         : PSEG_F32;
}

static pseg_status floats_of(float **out, const pseg_tensor *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = pseg_malloc((t->n ? t->n : 1) * sizeof **out);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", t->name);
    pseg_to_f32(*out, t->data, type_of(t), t->n);
out:
    return rc;
}

/* w [n, k] += b [n, rank] a [rank, k], where the checkpoint has the two. */
static pseg_status add_lora(float *w, const pseg_tensor *t, const pseg_tensors *best,
                            const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char key[PSEG_SPEC_NAME + 32];
    int stem = (int)strlen(name) - (int)strlen(".weight");
    float *fa = NULL, *fb = NULL;

    if (stem <= 0 || strcmp(name + stem, ".weight") != 0 || t->rank != 2)
        goto out;
    snprintf(key, sizeof key, "%.*s.lora_a.weight", stem, name);
    const pseg_tensor *a = pseg_tensors_find(best, key);
    snprintf(key, sizeof key, "%.*s.lora_b.weight", stem, name);
    const pseg_tensor *b = pseg_tensors_find(best, key);
    if (!a || !b)
        goto out;
    PSEG_TRY(floats_of(&fa, a, err));
    PSEG_TRY(floats_of(&fb, b, err));
    size_t n = (size_t)t->dims[0], k = (size_t)t->dims[1], rank = (size_t)a->dims[0];
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rank; r++)
            for (size_t j = 0; j < k; j++)
                w[i * k + j] += fb[i * rank + r] * fa[r * k + j];
out:
    pseg_free(fa);
    pseg_free(fb);
    return rc;
}

/* ---- weights --------------------------------------------------------------------------------- */

/* The tensor of the checkpoint that belongs to one of an encoder's folder, or NULL. */
static const pseg_tensor *trained(const pseg_tensors *best, const char *under, const char *prefix,
                                  const pseg_tensor *t, char key[PSEG_SPEC_NAME + 32])
{
    size_t skip = strlen(prefix);

    snprintf(key, PSEG_SPEC_NAME + 32, "%s%s", under,
             strncmp(t->name, prefix, skip) == 0 ? t->name + skip : t->name);
    return pseg_tensors_find(best, key);
}

/* All tensors of numbers of the encoder's folder, each as it was trained or as it was. */
static pseg_status write_tower(const char *path, const pseg_tensors *from, const pseg_tensors *best,
                               const char *under, const char *prefix, bool is_half, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tensors_writer *w = NULL;
    char key[PSEG_SPEC_NAME + 32];
    float *numbers = NULL;

    PSEG_TRY(pseg_tensors_writer_new(&w, path, err));
    pseg_tensors_writer_set_type(w, is_half ? PSEG_F16 : PSEG_F32);
    PSEG_TRY(pseg_tensors_writer_meta(w, "format", "pt", err));
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < pseg_tensors_count(from); i++) {
            const pseg_tensor *t = pseg_tensors_at(from, i);
            const pseg_tensor *own = trained(best, under, prefix, t, key), *use = own ? own : t;

            if (t->type == PSEG_TENSOR_I64 || t->type == PSEG_TENSOR_OTHER)
                continue; /* position_ids */
            if (pass == 0) {
                PSEG_TRY(pseg_tensors_writer_declare(w, t->name, use->rank, use->dims, err));
                continue;
            }
            pseg_free(numbers);
            numbers = NULL;
            PSEG_TRY(floats_of(&numbers, use, err));
            if (!own)
                PSEG_TRY(add_lora(numbers, t, best, key, err));
            PSEG_TRY(pseg_tensors_writer_data(w, numbers, use->n, err));
        }
    PSEG_TRY(pseg_tensors_writer_finish(w, err));
out:
    pseg_free(numbers);
    pseg_tensors_writer_free(w);
    return rc;
}

static pseg_status write_head(const pseg_train_export *x, const pseg_tensors *best, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(x->folder, "pseg.safetensors");
    pseg_tensors_writer *w = NULL;
    float *numbers = NULL;

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to export");
    PSEG_TRY(pseg_tensors_writer_new(&w, path, err));
    pseg_tensors_writer_set_type(w, x->is_half ? PSEG_F16 : PSEG_F32);
    PSEG_TRY(pseg_head_config_write(w, x->head, err));
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < pseg_tensors_count(best); i++) {
            const pseg_tensor *t = pseg_tensors_at(best, i);

            if (strncmp(t->name, "vision.", 7) == 0 || strncmp(t->name, "text.", 5) == 0)
                continue;
            if (pass == 0) {
                PSEG_TRY(pseg_tensors_writer_declare(w, t->name, t->rank, t->dims, err));
                continue;
            }
            pseg_free(numbers);
            numbers = NULL;
            PSEG_TRY(floats_of(&numbers, t, err));
            PSEG_TRY(pseg_tensors_writer_data(w, numbers, t->n, err));
        }
    PSEG_TRY(pseg_tensors_writer_finish(w, err));
out:
    pseg_free(path);
    pseg_free(numbers);
    pseg_tensors_writer_free(w);
    return rc;
}

/* ---- what stands beside them ----------------------------------------------------------------- */

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);

    return n >= k && strcmp(s + n - k, with) == 0;
}

/* Configuration and tokenizer: everything but weights in any form. */
static bool is_copied(const char *name)
{
    return !ends(name, ".safetensors") && !ends(name, ".safetensors.index.json") &&
           !ends(name, ".bin") && !ends(name, ".msgpack") && !ends(name, ".h5") && name[0] != '.';
}

static pseg_status copy_file(const char *to, const char *from, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *data = NULL;
    size_t n;

    PSEG_TRY(pseg_file_read(&data, &n, from, MAX_FILE, err));
    PSEG_TRY(pseg_file_write(to, data, n, err));
out:
    pseg_free(data);
    return rc;
}

static pseg_status copy_beside(const char *to, const char *from, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    DIR *d = opendir(from);
    char *a = NULL, *b = NULL;
    struct stat st;

    if (!d)
        PSEG_FAIL(PSEG_R_FILE_NOT_FOUND, errno, "cannot read %s: %s", from, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (!is_copied(e->d_name))
            continue;
        pseg_free(a);
        pseg_free(b);
        a = pseg_path_join(from, e->d_name);
        b = pseg_path_join(to, e->d_name);
        if (!a || !b)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to export");
        if (stat(a, &st) == 0 && S_ISREG(st.st_mode))
            PSEG_TRY(copy_file(b, a, err));
    }
out:
    if (d)
        closedir(d);
    pseg_free(a);
    pseg_free(b);
    return rc;
}

static pseg_status export_tower(const pseg_train_export *x, const char *name, const char *from,
                                const pseg_tensors *best, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool is_vision = from == x->vision;
    char *folder = pseg_path_join(x->folder, name), *path = NULL;
    pseg_tensors *file = NULL;
    const char *prefix = "";
    pseg_vit_names names;

    if (!folder || !(path = pseg_path_join(folder, "model.safetensors")))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to export");
    PSEG_TRY(pseg_dir_make(folder, err));
    PSEG_TRY(copy_beside(folder, from, err));
    PSEG_TRY(pseg_tensors_open_folder(&file, from, err));
    if (is_vision) {
        char key[PSEG_SPEC_NAME + 32], pos[PSEG_SPEC_NAME];

        PSEG_TRY(pseg_vit_detect(&prefix, &names, file, err));
        pseg_vit_part_name(pos, x->towers->vision, names, PSEG_VIT_POS, 0);
        snprintf(key, sizeof key, "vision.%s", pos);
        if (pseg_tensors_find(best, key)) /* positions were trained, at the head's grid */
            PSEG_TRY(pseg_vit_config_set_size(folder, x->head->height, x->head->width, err));
    }
    PSEG_TRY(
        write_tower(path, file, best, is_vision ? "vision." : "text.", prefix, x->is_half, err));
out:
    pseg_tensors_close(file);
    pseg_free(folder);
    pseg_free(path);
    return rc;
}

pseg_status pseg_train_export_write(const pseg_train_export *x, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_folder f = *x->about;
    pseg_tensors *best = NULL;
    char *json = pseg_path_join(x->folder, "pseg.json");

    if (!json)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to export");
    if (unlink(json) && errno != ENOENT)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot remove %s: %s", json, strerror(errno));
    PSEG_TRY(pseg_tensors_open_file(&best, x->best, err));
    if (x->vision) {
        PSEG_TRY(export_tower(x, "vision", x->vision, best, err));
        snprintf(f.vision, sizeof f.vision, "vision");
    }
    if (x->text) {
        PSEG_TRY(export_tower(x, "text", x->text, best, err));
        snprintf(f.text, sizeof f.text, "text");
    }
    PSEG_TRY(write_head(x, best, err));
    snprintf(f.decoder, sizeof f.decoder, "pseg.safetensors");
    PSEG_TRY(pseg_folder_write(&f, x->folder, err));
out:
    pseg_tensors_close(best);
    pseg_free(json);
    return rc;
}
