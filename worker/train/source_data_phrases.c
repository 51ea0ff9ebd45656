/* What is asked of phrases before hours are spent on their images. */
#include "common/base/alloc.h"
#include "worker/data/arrays.h"
#include "worker/train/source_data_parts.h"

#include <string.h>

bool data_sets_is_wanted(const pseg_data_sample *s, const char *kind)
{
    return !kind || strcmp(s->kind, kind) == 0;
}

static pseg_status seek(const pseg_text_table *table, const char *phrase, bool is_mirrored,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mirror what = PSEG_MIRROR_SAME;
    char *mirrored = NULL;
    uint32_t row;

    PSEG_TRY(pseg_text_table_find(&row, table, phrase, err));
    if (is_mirrored)
        PSEG_TRY(pseg_data_mirror_phrase(&mirrored, &what, phrase, err));
    if (what == PSEG_MIRROR_CHANGED)
        PSEG_TRY(pseg_text_table_find(&row, table, mirrored, err));
out:
    pseg_free(mirrored);
    return rc;
}

static pseg_status seek_record(const pseg_data_record *r, const pseg_train_data_options *o,
                               bool is_mirrored, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t i = 0; i < r->n_samples; i++) {
        const pseg_data_sample *s = &r->samples[i];

        for (uint32_t k = 0; k < s->n_sentences && data_sets_is_wanted(s, o->kind); k++)
            PSEG_TRY(seek(o->table, s->sentences[k], is_mirrored, err));
    }
out:
    if (rc != PSEG_OK)
        pseg_err_prefix(err, "%s", r->where);
    return rc;
}

pseg_status data_sets_seek_phrases(const data_part *p, const pseg_train_data_options *o,
                                   bool is_mirrored, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_record *r = NULL;

    for (size_t i = 0; i < p->images.n; i++) {
        PSEG_TRY(pseg_dataset_read(&r, p->d, p->images.images[i], err));
        PSEG_TRY(seek_record(r, o, is_mirrored, err));
        pseg_data_record_free(r);
        r = NULL;
    }
out:
    pseg_data_record_free(r);
    return rc;
}
