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
#define NAME     (PSEG_SPEC_NAME + 32)

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

/* w [n, k] += b [n, rank] a [rank, k], where the checkpoint has the two beside key. */
static pseg_status add_lora(float *w, size_t n, size_t k, const pseg_tensors *best, const char *key,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char name[NAME + 16];
    int stem = (int)strlen(key) - (int)strlen(".weight");
    float *fa = NULL, *fb = NULL;

    if (stem <= 0 || strcmp(key + stem, ".weight") != 0)
        goto out;
    snprintf(name, sizeof name, "%.*s.lora_a.weight", stem, key);
    const pseg_tensor *a = pseg_tensors_find(best, name);
    snprintf(name, sizeof name, "%.*s.lora_b.weight", stem, key);
    const pseg_tensor *b = pseg_tensors_find(best, name);
    if (!a || !b)
        goto out;
    PSEG_TRY(floats_of(&fa, a, err));
    PSEG_TRY(floats_of(&fb, b, err));
    size_t rank = (size_t)a->dims[0];
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

/* An encoder's folder as it was, and the checkpoint that has what became of it. */
typedef struct tower {
    const pseg_tensors *from, *best;
    const char *under, *prefix; /* of the checkpoint's names; of the folder's */
    const pseg_vit_config *vit; /* NULL: the folder's names are the checkpoint's */
    pseg_vit_names names;
} tower;

/* Where the checkpoint would have t, in n parts one below the other. */
static uint32_t keys_of(char keys[3][NAME], const tower *w, const pseg_tensor *t)
{
    size_t skip = strlen(w->prefix);
    const char *name = strncmp(t->name, w->prefix, skip) == 0 ? t->name + skip : t->name;
    char names[3][PSEG_SPEC_NAME];
    uint32_t n = w->vit ? pseg_vit_hf_names(names, w->vit, w->names, name) : 0;

    for (uint32_t k = 0; k < n; k++)
        snprintf(keys[k], NAME, "%s%s", w->under, names[k]);
    if (n == 0)
        snprintf(keys[0], NAME, "%s%s", w->under, name);
    return n ? n : 1;
}

/* t with those of its parts that were trained in their places, and LoRA's products added. */
static pseg_status trained_parts(float *numbers, const tower *w, const pseg_tensor *t,
                                 char keys[3][NAME], uint32_t n_keys, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t part = t->n / n_keys;

    for (uint32_t k = 0; k < n_keys; k++) {
        const pseg_tensor *own = pseg_tensors_find(w->best, keys[k]);
        if (own && own->n != part)
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "%s has another size than its part of %s", own->name,
                      t->name);
        if (own)
            pseg_to_f32(numbers + k * part, own->data, type_of(own), part);
        else if (t->rank == 2)
            PSEG_TRY(add_lora(numbers + k * part, (size_t)t->dims[0] / n_keys, (size_t)t->dims[1],
                              w->best, keys[k], err));
    }
out:
    return rc;
}

/* The checkpoint's positions, whose first row, that of CLS, the folder has in its CLS token; NULL:
 * the folder has the row too, or they were not trained. */
static const pseg_tensor *cls_position(const tower *w)
{
    char name[PSEG_SPEC_NAME], key[NAME];

    if (!w->vit || pseg_vit_has_cls_position(w->vit, w->names))
        return NULL;
    pseg_vit_part_name(name, w->vit, PSEG_VIT_NAMES_HF, PSEG_VIT_POS, 0);
    snprintf(key, sizeof key, "%s%s", w->under, name);
    return pseg_tensors_find(w->best, key);
}

static bool is_part(const tower *w, const char *key, pseg_vit_part part)
{
    char name[PSEG_SPEC_NAME];

    pseg_vit_part_name(name, w->vit, PSEG_VIT_NAMES_HF, part, 0);
    return strcmp(key + strlen(w->under), name) == 0;
}

static pseg_status add_row(float *numbers, const pseg_tensor *positions, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *row = NULL;

    PSEG_TRY(floats_of(&row, positions, err));
    for (size_t i = 0; i < n; i++)
        numbers[i] += row[i];
out:
    pseg_free(row);
    return rc;
}

/* In the second pass t's numbers, in the first its shape: positions may have another grid. */
static pseg_status write_tensor(pseg_tensors_writer *out, const tower *w, const pseg_tensor *t,
                                int pass, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char keys[3][NAME];
    uint32_t n_keys = keys_of(keys, w, t);
    const pseg_tensor *own = n_keys == 1 ? pseg_tensors_find(w->best, keys[0]) : NULL;
    const pseg_tensor *use = own ? own : t, *positions = cls_position(w);
    bool lacks_row = positions && own == positions;
    size_t skip = lacks_row ? w->vit->hidden : 0;
    float *numbers = NULL;

    if (pass == 0) {
        uint64_t dims[PSEG_TENSOR_MAX_RANK];

        memcpy(dims, use->dims, use->rank * sizeof *dims);
        if (lacks_row)
            dims[1]--; /* [1, places, hidden] */
        rc = pseg_tensors_writer_declare(out, t->name, use->rank, dims, err);
        goto out;
    }
    PSEG_TRY(floats_of(&numbers, use, err));
    if (!own)
        PSEG_TRY(trained_parts(numbers, w, t, keys, n_keys, err));
    if (positions && is_part(w, keys[0], PSEG_VIT_CLS))
        PSEG_TRY(add_row(numbers, positions, w->vit->hidden, err));
    PSEG_TRY(pseg_tensors_writer_data(out, numbers + skip, use->n - skip, err));
out:
    pseg_free(numbers);
    return rc;
}

/* All tensors of numbers of the encoder's folder, each as it was trained or as it was. */
static pseg_status write_tower(const char *path, const tower *w, bool is_half, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tensors_writer *out = NULL;

    PSEG_TRY(pseg_tensors_writer_new(&out, path, err));
    pseg_tensors_writer_set_type(out, is_half ? PSEG_F16 : PSEG_F32);
    PSEG_TRY(pseg_tensors_writer_meta(out, "format", "pt", err));
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < pseg_tensors_count(w->from); i++) {
            const pseg_tensor *t = pseg_tensors_at(w->from, i);

            if (t->type != PSEG_TENSOR_I64 && t->type != PSEG_TENSOR_OTHER) /* position_ids */
                PSEG_TRY(write_tensor(out, w, t, pass, err));
        }
    PSEG_TRY(pseg_tensors_writer_finish(out, err));
out:
    pseg_tensors_writer_free(out);
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

/* How the image encoder's folder names its tensors; and its size, if positions were trained at the
 * head's grid. */
static pseg_status look_at_vision(tower *w, const pseg_train_export *x, const char *folder,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = x->towers->vision;
    char key[NAME], pos[PSEG_SPEC_NAME];

    PSEG_TRY(pseg_vit_detect(&w->prefix, &w->names, w->from, err));
    w->vit = w->names != PSEG_VIT_NAMES_HF ? c : NULL;
    pseg_vit_part_name(pos, c, PSEG_VIT_NAMES_HF, PSEG_VIT_POS, 0);
    snprintf(key, sizeof key, "%s%s", w->under, pos);
    if (pseg_tensors_find(w->best, key))
        PSEG_TRY(pseg_vit_config_set_size(folder, x->head->height, x->head->width, err));
out:
    return rc;
}

static pseg_status export_tower(const pseg_train_export *x, const char *name, const char *from,
                                const pseg_tensors *best, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool is_vision = from == x->vision;
    char *folder = pseg_path_join(x->folder, name), *path = NULL;
    pseg_tensors *file = NULL;
    tower w = {.best = best, .under = is_vision ? "vision." : "text.", .prefix = ""};

    if (!folder || !(path = pseg_path_join(folder, "model.safetensors")))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to export");
    PSEG_TRY(pseg_dir_make(folder, err));
    PSEG_TRY(copy_beside(folder, from, err));
    PSEG_TRY(pseg_tensors_open_folder(&file, from, err));
    w.from = file;
    if (is_vision)
        PSEG_TRY(look_at_vision(&w, x, folder, err));
    PSEG_TRY(write_tower(path, &w, x->is_half, err));
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
