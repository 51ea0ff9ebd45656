#include "worker/train/checkpoint.h"
#include "common/base/alloc.h"
#include "worker/model/safetensors_write.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The state's numbers, by name. */
typedef struct number {
    const char *key;
    size_t offset;
    bool is_real;
} number;

#define COUNT(name)                                    \
    {                                                  \
#name, offsetof(pseg_train_state, name), false \
    }
#define REAL(name)                                    \
    {                                                 \
#name, offsetof(pseg_train_state, name), true \
    }
static const number numbers[] = {
    COUNT(epoch),
    COUNT(batch),
    COUNT(step),
    COUNT(steps_taken),
    COUNT(skipped_in_a_row),
    COUNT(epochs_without),
    REAL(best_iou),
    COUNT(best_epoch),
    REAL(seconds),
    REAL(sum_loss),
    REAL(sum_iou),
    COUNT(n_sum),
    REAL(val_loss),
    REAL(val_iou),
};
#define N_NUMBERS (sizeof numbers / sizeof *numbers)

static const struct {
    pseg_params_buffer which;
    const char *prefix;
} parts[] = {{PSEG_PARAMS_VALUE, ""},
             {PSEG_PARAMS_MEAN, "adam.mean."},
             {PSEG_PARAMS_SQUARE, "adam.square."},
             {PSEG_PARAMS_EMA, "ema."}};

static size_t n_parts(const pseg_params *p, bool is_whole)
{
    return !is_whole ? 1 : pseg_params_has_ema(p) ? 4 : 3;
}

/* ---- writing --------------------------------------------------------------------------------- */

static pseg_status write_meta(pseg_tensors_writer *w, const pseg_checkpoint *c,
                              const pseg_train_state *state, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char key[64], value[64];

    PSEG_TRY(pseg_head_config_write(w, c->head, err));
    for (size_t i = 0; i < c->n_settings; i++) {
        snprintf(key, sizeof key, "run.%s", c->settings[i].key);
        PSEG_TRY(pseg_tensors_writer_meta(w, key, c->settings[i].value, err));
    }
    for (size_t i = 0; i < N_NUMBERS; i++) {
        const char *at = (const char *)state + numbers[i].offset;

        snprintf(key, sizeof key, "state.%s", numbers[i].key);
        if (numbers[i].is_real)
            snprintf(value, sizeof value, "%a", *(const double *)at);
        else
            snprintf(value, sizeof value, "%" PRIu64, *(const uint64_t *)at);
        PSEG_TRY(pseg_tensors_writer_meta(w, key, value, err));
    }
out:
    return rc;
}

static bool is_left_out(const pseg_param *p, bool is_whole)
{
    return p->is_frozen || (!is_whole && p->group == PSEG_PARAM_PROBE);
}

static pseg_status declare(pseg_tensors_writer *w, const pseg_params *p, bool is_whole,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char name[PSEG_SPEC_NAME + 16];

    for (size_t k = 0; k < n_parts(p, is_whole); k++)
        for (size_t i = 0; i < pseg_params_count(p); i++) {
            const pseg_spec *s = &pseg_params_at(p, i)->spec;

            if (is_left_out(pseg_params_at(p, i), is_whole))
                continue;
            snprintf(name, sizeof name, "%s%s", parts[k].prefix, s->name);
            PSEG_TRY(pseg_tensors_writer_declare(w, name, s->rank, s->dims, err));
        }
out:
    return rc;
}

static pseg_status write_part(pseg_tensors_writer *w, const pseg_params *p, const float *host,
                              bool is_whole, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *plain = NULL;

    for (size_t i = 0; i < pseg_params_count(p); i++) {
        size_t n = pseg_params_at(p, i)->plain;

        if (is_left_out(pseg_params_at(p, i), is_whole))
            continue;
        pseg_free(plain);
        plain = pseg_malloc(n * sizeof *plain);
        if (!plain)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a checkpoint");
        PSEG_TRY(pseg_params_unpack(plain, p, i, host, err));
        PSEG_TRY(pseg_tensors_writer_data(w, plain, n, err));
    }
out:
    pseg_free(plain);
    return rc;
}

pseg_status pseg_checkpoint_write(const char *path, const pseg_checkpoint *c,
                                  const pseg_train_state *state, bool is_whole, pseg_stream *s,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_params *p = c->params;
    float *host = pseg_malloc(pseg_params_all_elems(p) * sizeof *host);
    pseg_tensors_writer *w = NULL;

    if (!host)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a checkpoint");
    PSEG_TRY(pseg_tensors_writer_new(&w, path, err));
    PSEG_TRY(write_meta(w, c, state, err));
    PSEG_TRY(declare(w, p, is_whole, err));
    for (size_t k = 0; k < n_parts(p, is_whole); k++) {
        bool averaged = !is_whole && pseg_params_has_ema(p);

        PSEG_TRY(pseg_params_read(host, p, s, averaged ? PSEG_PARAMS_EMA : parts[k].which, err));
        PSEG_TRY(write_part(w, p, host, is_whole, err));
    }
    PSEG_TRY(pseg_tensors_writer_finish(w, err));
out:
    pseg_tensors_writer_free(w);
    pseg_free(host);
    return rc;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* The file and what it is compared with. */
typedef struct comparison {
    const pseg_tensors *file;
    const char *prefix; /* of keys in the file */
} comparison;

static pseg_status compare(void *ud, const char *key, const char *value, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const comparison *c = ud;
    char name[64];

    snprintf(name, sizeof name, "%s%s", c->prefix, key);
    const char *found = pseg_tensors_metadata(c->file, name);
    if (!found)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "%s is no checkpoint of such a run: it does not tell %s (here: %s)",
                  pseg_tensors_path(c->file), key, value);
    if (strcmp(found, value) != 0)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "%s is of another run: %s is %.80s there and %.80s here; give the same options, "
                  "or another --out",
                  pseg_tensors_path(c->file), key, found, value);
out:
    return rc;
}

static pseg_status read_state(pseg_train_state *state, const pseg_tensors *f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char key[64], *end;

    for (size_t i = 0; i < N_NUMBERS; i++) {
        char *at = (char *)state + numbers[i].offset;

        snprintf(key, sizeof key, "state.%s", numbers[i].key);
        const char *value = pseg_tensors_metadata(f, key);
        if (!value || !*value)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: metadata %s is missing", pseg_tensors_path(f),
                      key);
        if (numbers[i].is_real)
            *(double *)at = strtod(value, &end);
        else
            *(uint64_t *)at = strtoull(value, &end, 10);
        if (*end)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: metadata %s = \"%.40s\" is no number",
                      pseg_tensors_path(f), key, value);
    }
out:
    return rc;
}

static pseg_status check_tensors(pseg_weights *w, const pseg_params *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_specs specs = {0};

    for (size_t k = 0; k < n_parts(p, true); k++)
        for (size_t i = 0; i < pseg_params_count(p); i++) {
            const pseg_spec *s = &pseg_params_at(p, i)->spec;
            char name[PSEG_SPEC_NAME + 16];

            if (pseg_params_at(p, i)->is_frozen)
                continue;
            snprintf(name, sizeof name, "%s%s", parts[k].prefix, s->name);
            PSEG_TRY(pseg_specs_add(&specs, s->rank, s->dims, err, "%s", name));
        }
    PSEG_TRY(pseg_weights_check(w, &specs, err));
out:
    pseg_specs_deinit(&specs);
    return rc;
}

pseg_status pseg_checkpoint_read(pseg_train_state *state, const char *path,
                                 const pseg_checkpoint *c, pseg_params *params, pseg_stream *s,
                                 pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tensors *f = NULL;
    pseg_weights *w = NULL;

    PSEG_TRY(pseg_tensors_open_file(&f, path, err));
    PSEG_TRY(pseg_head_config_each(c->head, compare, &(comparison){f, ""}, err));
    for (size_t i = 0; i < c->n_settings; i++)
        PSEG_TRY(compare(&(comparison){f, "run."}, c->settings[i].key, c->settings[i].value, err));
    PSEG_TRY(read_state(state, f, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, f, "", err));
    PSEG_TRY(check_tensors(w, params, err));
    for (size_t k = 0; k < n_parts(params, true); k++)
        PSEG_TRY(pseg_params_load(params, s, parts[k].which, w, parts[k].prefix, "", false, err));
out:
    pseg_weights_free(w);
    pseg_tensors_close(f);
    return rc;
}
