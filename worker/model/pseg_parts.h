/* The inside of a pseg_model, shared by pseg.c (running), pseg_open.c (opening), pseg_digest.c and
 * pseg_packed.c only. */
#ifndef PSEG_MODEL_PSEG_PARTS_H
#define PSEG_MODEL_PSEG_PARTS_H

#include "worker/model/decoder.h"
#include "worker/model/neck.h"
#include "worker/model/pseg.h"
#include "worker/model/sam.h"
#include "worker/model/stage.h"
#include "worker/model/text.h"
#include "worker/model/text_table.h"
#include "worker/model/vit.h"
#include "worker/text/tokenizer.h"

/* Freed features and prompts wait here for the next image or phrase: device memory is taken when
 * more live at once than ever before, not at each call. */
struct pseg_features {
    pseg_model *m;
    pseg_mem *mem;
    pseg_features *next;
};

struct pseg_prompt {
    pseg_model *m;
    pseg_mem *mem; /* max_prompt rows, n_rows of them in use */
    uint32_t n_rows, n_tokens;
    uint32_t slot; /* while it is made: its phrase's place among the distinct ones of the pass */
    bool is_cut;
    pseg_prompt *next;
};

struct pseg_model {
    pseg_cl *cl;
    pseg_stage stage; /* with the stream */
    pseg_model_options options;
    pseg_model_info info;
    pseg_tensors *vision_file, *text_file, *head_file; /* NULL if random */
    pseg_sam *sam;                                     /* or NULL */
    char *vision_folder;                               /* NULL if random */
    pseg_tokenizer *tokenizer;                         /* NULL with a table */
    pseg_text_table *table;                            /* in place of tokenizer and text, or NULL */
    pseg_store *store;
    pseg_vit *vit;
    pseg_text *text;
    pseg_neck *neck;
    pseg_decoder *decoder;
    pseg_view pixels, taps[PSEG_MAX_TAPS];
    pseg_view embeds; /* table: [max_phrases, text_dim] */
    float *rows;      /* table: the same on the host */
    bool has_word_tokens;
    uint32_t max_prompt; /* rows of a prompt at most */
    int32_t *ids;        /* [max_phrases, max_tokens] */
    uint32_t *lens;      /* [max_phrases] */
    pseg_decoder_input *inputs;
    pseg_features *free_features;
    pseg_prompt *free_prompts;
};

/* What a model's digest is made of, and where it goes. Paths are borrowed. */
typedef struct pseg_digest_job {
    const pseg_model *m;                /* with its files open */
    const char *folder, *vision, *text; /* folder may be NULL */
    char hex[PSEG_SHA256_HEX + 1];      /* "" if a file could not be read or memory was short */
} pseg_digest_job;
/* A thread's function; ud: a pseg_digest_job. Reads all of the files. */
void *pseg_digest_run(void *ud);
/* The same digest, from dir if it was taken before and no file has changed since (packed_cache.h).
 */
void pseg_digest_find(pseg_digest_job *j, const char *dir);

/* Of the files of an image encoder, or of a text encoder, alone. Errors: PSEG_R_OUT_OF_MEMORY, also
 * for a file that cannot be read. */
pseg_status pseg_digest_part(char hex[PSEG_SHA256_HEX + 1], const char *folder, bool is_text,
                             const pseg_tensors *t, pseg_err *err);

/* Token ids of one phrase, at most max: BOS to the first EOS, of which a phrase that names the
 * special token has one before its end. */
pseg_status pseg_tokenize_phrase(int32_t *ids, uint32_t *len, bool *is_cut, const pseg_tokenizer *t,
                                 uint32_t max, const char *phrase, pseg_err *err);

/* Makes what is made of m->store: encoders, neck, decoder, and their lists on the host. */
typedef pseg_status pseg_parts_fn(pseg_model *m, void *ud, pseg_err *err);
void pseg_parts_free(pseg_model *m);
/* With m->info.digest and the sizes of m->info set: makes the parts from the file of packed weights
 * in dir, which is made at first if it is not there or not good. Where it cannot be, and that is
 * logged, the weights are packed for this process alone. */
pseg_status pseg_packed_load(pseg_model *m, const char *dir, pseg_parts_fn *make, void *ud,
                             pseg_err *err);

#endif
