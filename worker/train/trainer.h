/* A training run: from a source of batches to a folder that inference opens.
 *
 * Each step encodes or uploads a batch, runs the graph forward and backward, clips and takes a step
 * of AdamW; after each epoch the validation batches are scored, and the best weights kept. The
 * folder is whole at every moment from the first save on:
 *
 *   pseg.json, best.safetensors    what `pseg run --model DIR` opens; or, where encoders are
 *                                  trained or float16 is asked for, pseg.json, pseg.safetensors,
 *                                  vision/ and text/ (export.h)
 *   last.safetensors               where the run goes on after a fall (checkpoint.h)
 *   log.jsonl, curves.svg          report.h; and event files for TensorBoard, events.h
 *
 * Bits depend on device, options and data alone: neither on when the run was interrupted nor on
 * threads. A batch whose loss or gradient is not a number changes nothing, is named in the log and
 * counted. An object of one thread (the source has its own). */
#ifndef PSEG_TRAIN_TRAINER_H
#define PSEG_TRAIN_TRAINER_H

#include "common/base/log.h"
#include "worker/train/checkpoint.h"
#include "worker/train/encoders.h"
#include "worker/train/optim.h"
#include "worker/train/source.h"

#include <signal.h>

typedef struct pseg_trainer pseg_trainer;

typedef enum pseg_train_event_kind {
    PSEG_TRAIN_STEPPED,
    PSEG_TRAIN_SKIPPED,   /* a step: text names samples */
    PSEG_TRAIN_VALIDATED, /* one validation batch */
    PSEG_TRAIN_EPOCH_DONE,
    PSEG_TRAIN_STOPPED_EARLY,
} pseg_train_event_kind;

typedef struct pseg_train_event {
    pseg_train_event_kind kind;
    uint64_t epoch, epochs, step, steps; /* epoch, step: done */
    double loss, iou;                    /* of the step, or means of the epoch */
    double val_loss, val_iou;            /* EPOCH_DONE; NAN: no validation */
    bool is_best;
    double images_per_s, remaining_s; /* samples; remaining: NAN if not known yet */
    const char *text;
} pseg_train_event;
typedef void pseg_train_event_fn(void *ud, const pseg_train_event *e);

typedef struct pseg_trainer_options {
    pseg_train_sizes sizes;
    uint32_t accumulate; /* batches a step, 1 or more */
    uint32_t epochs;
    double warm_epochs;
    uint32_t patience;   /* epochs without a better validation, then the run ends; 0: never */
    uint32_t max_skips;  /* steps in a row without a number, then the run fails */
    uint32_t max_tokens; /* of a phrase, BOS and EOS included; longer ones are cut and counted */
    uint64_t save_every; /* steps; also after each epoch */
    pseg_optim_options optim;
    pseg_loss_weights loss;
    float loss_deep; /* deep supervision, head.h; 0: none */
    /* Encoders that are trained too, and how far: towers.h. */
    struct {
        bool vision, text;
        uint32_t vision_layers, text_layers, lora_rank;
    } towers;
    bool exports_half;                 /* what is exported of trained encoders is in float16 */
    const char *folder;                /* made if missing */
    bool resume;                       /* from last.safetensors, if there is one */
    pseg_folder about;                 /* for pseg.json; decoder is filled in */
    const volatile sig_atomic_t *stop; /* not 0: save, and end the run after this step; or NULL */
    pseg_train_event_fn *on_event;     /* or NULL */
    void *event_ud;
    const pseg_log *log; /* or NULL */
} pseg_trainer_options;

/* What pseg_trainer_new would refuse whatever the data: ask before time is spent on them. e is
 * open. Errors: PSEG_R_CONFIG_INVALID. */
pseg_status pseg_trainer_check(const pseg_trainer_options *o, const pseg_encoders *e,
                               pseg_err *err);

/* Everything is borrowed until free. e is loaded here; it has an image encoder unless the source
 * has taps. init: the weights to begin from, checked against the head's tensors. Errors:
 * PSEG_R_CONFIG_INVALID (options that do not go together, a folder that holds a run while
 * resume is false), PSEG_R_MODEL_MISMATCH (a checkpoint of another run), device errors. */
pseg_status pseg_trainer_new(pseg_trainer **out, pseg_cl *cl, pseg_encoders *e,
                             const pseg_train_source *source, const pseg_head_config *head,
                             pseg_weights *init, const pseg_trainer_options *o, pseg_err *err);
void pseg_trainer_free(pseg_trainer *t); /* NULL: nothing happens */

/* To the end, or until *stop. Errors: those of the source and of writing; PSEG_R_INTERNAL after
 * max_skips. The folder then holds the last save. */
pseg_status pseg_trainer_run(pseg_trainer *t, pseg_err *err);

typedef struct pseg_train_summary {
    pseg_train_state state;
    uint64_t params;                                  /* numbers that are trained */
    uint64_t graph_bytes, param_bytes, encoder_bytes; /* of device memory */
    uint64_t skipped, cut_phrases;                    /* of this process */
    bool is_done, is_stopped;
} pseg_train_summary;
void pseg_trainer_sum_up(pseg_train_summary *out, const pseg_trainer *t);

/* The stream that it runs on, for profiles. Borrowed until free. */
pseg_stream *pseg_trainer_stream(const pseg_trainer *t);

#endif
