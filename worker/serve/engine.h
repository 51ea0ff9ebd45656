/* One image and its phrases, from encoded bytes to results: what `pseg-worker` does for a job and
 * `pseg run` does without a server, so that the two agree pixel for pixel.
 *
 * The work has three parts that may run on three threads: prepare (decode, resize), run (device)
 * and finish (summaries, packing). An engine has one device or several, each with the whole model;
 * any of them may run any work, and what one has encoded serves the others too. */
#ifndef PSEG_SERVE_ENGINE_H
#define PSEG_SERVE_ENGINE_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "common/image/image.h"
#include "common/job/job.h"
#include "common/mask/mask.h"
#include "worker/model/pseg.h"
#include "worker/serve/pictures.h"

#include <stdint.h>

enum { PSEG_ENGINE_MAX_STAGES = 12, PSEG_ENGINE_MAX_JOBS = 64, PSEG_ENGINE_MAX_KERNELS = 1024 };

/* The name of the model that does no work: it decodes no image and gives empty masks. With it the
 * speed of everything around the model can be measured. */
#define PSEG_ENGINE_EMPTY "empty"

typedef struct pseg_engine pseg_engine;

typedef struct pseg_engine_options {
    pseg_model_source source; /* folder NULL, no parts and no preset: the empty model */
    const char *preset;       /* of pseg_model_random, in place of a source; NULL: none */
    const char *name;         /* under which it is served; NULL: the model's own */
    pseg_cl_options cl;
    /* As of pseg_device_expand, in place of cl.device; n_devices = 0: that one. */
    const char *const *devices;
    size_t n_devices;
    pseg_model_options model;
    pseg_image_limits limits;
    /* Images are decoded in so many processes that are locked in; 0: in this one. The empty model
     * looks at headers alone, here. */
    size_t n_decoders;
    size_t decode_images; /* as of pseg_decoders_options, as are the next; only with n_decoders */
    int64_t decode_s;
    uint64_t decode_memory_bytes;
    bool shrink_on_load; /* pseg_preprocess.may_shrink; the job's stages then say by how much */
    const char *worker;  /* id, for receipts */
    size_t kept_bytes;   /* of each device's memory for the features of images that were asked for
                            last */
    size_t kept_phrases; /* encoded phrases that stay on each device, for their next images */
    bool reads_features; /* encoded images can be taken by pseg_engine_take_features */
    size_t max_encode;   /* images in one pass of the encoder; 0: one on a CPU, where more in a pass
                          * are hardly faster and make the first wait for the last, else 8 */
    const pseg_log *log;
} pseg_engine_options;

/* Opens the devices and the model on each, all at once, and runs it once, so that the first job
 * does not wait for the compiler. pseg_image_init must have been called. Errors: those of
 * pseg_model_open, pseg_cl_open and pseg_device_expand; one device that cannot be opened is enough.
 */
pseg_status pseg_engine_open(pseg_engine **out, const pseg_engine_options *o, pseg_err *err);
/* Compiles for `device` what pseg_engine_open does, the other way round: for a second process,
 * whose work the first one then finds in the driver's cache. What it opened stays open: the process
 * is to end by _exit. Errors: those of pseg_engine_open. */
pseg_status pseg_engine_compile(const pseg_engine_options *o, const char *device, pseg_err *err);
/* Waits for the writing of at most one compiled program if keep_programs was called, else for all.
 */
void pseg_engine_close(pseg_engine *e);
/* From now on a thread of low priority keeps compiled programs on disk
 * (pseg_cl_keep_in_background); for processes that go on for long and must end soon. Any thread. */
void pseg_engine_keep_programs(pseg_engine *e);

const char *pseg_engine_name(const pseg_engine *e);
const char *pseg_engine_digest(const pseg_engine *e);
size_t pseg_engine_n_devices(const pseg_engine *e); /* 1 or more; also of the empty model */
/* Its name; where there are several, with its id behind it, so that no two are the same. */
const char *pseg_engine_device(const pseg_engine *e, size_t device);

/* A launch on the device. */
typedef struct pseg_kernel_time {
    const char *name;  /* of the kernel; static */
    const char *stage; /* within which it ran; static */
    int64_t begin_mono_ns, end_mono_ns;
} pseg_kernel_time;

/* One unit of work. Zeroed at first; everything is in the arena but what the engine frees. */
typedef struct pseg_work {
    pseg_arena *arena;          /* of the caller, lives as long as the work */
    const char *const *prompts; /* n of them */
    size_t n_prompts;
    const char *owner;  /* of the prompts: what is kept of them is found by the same owner alone */
    float threshold;    /* in (0, 1) */
    bool times_kernels; /* only with cl.profile in the engine's options */
    /* after prepare */
    pseg_picture *picture;
    uint32_t width, height; /* of the photo */
    float rect[4];
    /* after run, also one that failed: the device. Then [n, mask_height, mask_width], [n], [n] */
    size_t device;
    float *logits, *iou;
    bool *truncated;
    /* after run, if times_kernels: of its whole batch, in the order in which they ran. */
    pseg_kernel_time *kernels;
    size_t n_kernels, n_kernels_left_out; /* beyond PSEG_ENGINE_MAX_KERNELS */
    /* after finish */
    pseg_bytes result; /* packed pseg.internal.v1.JobResult */
    pseg_bytes *masks; /* n times float16 logits */
    pseg_mask_grid *grids;
    struct {
        const char *name; /* static */
        int64_t us, end_mono_us;
    } stages[PSEG_ENGINE_MAX_STAGES];
    size_t n_stages;
} pseg_work;

/* A stage of the job that took so long and is over now. */
void pseg_work_stage(pseg_work *w, const char *name, int64_t us);
/* Frees what prepare and run allocated; not the arena. Any thread. */
void pseg_work_free(pseg_engine *e, pseg_work *w);

/* Any thread. owner: as of pseg_decoders_prepare. Keeps the decoded photo in *photo if not NULL
 * (caller frees with pseg_image_free). */
pseg_status pseg_engine_prepare(pseg_engine *e, pseg_work *w, const char *owner, pseg_bytes image,
                                pseg_image **photo, pseg_err *err);

/* Before prepare, for images that other works may need too; key: tenant and content. READY: w is
 * prepared. AWAITED: another work prepares the image; w gets it by pseg_engine_adopt once that has
 * told pseg_engine_shared. MINE: w is to be prepared, and pseg_engine_shared called whether it
 * could be or not. The empty model shares nothing: MINE. Any thread. */
pseg_picture_state pseg_engine_share(pseg_engine *e, pseg_work *w, const char *key,
                                     pseg_waiter *waiter);
/* Is it READY? Then w is prepared; else nothing happens. Any thread. */
bool pseg_engine_find(pseg_engine *e, pseg_work *w, const char *key);
/* Returns who waited for it, as a list. */
pseg_waiter *pseg_engine_shared(pseg_engine *e, pseg_work *w, bool is_good);
/* w is prepared: takes the reference that a waiter got. */
void pseg_engine_adopt(pseg_work *w, pseg_picture *picture);

/* Features outside of this process: what an image was made into, packed as
 * pseg_engine_take_features gives it. The key names all that they depend on: model, kernels'
 * sources, precision, way of decoding, and `content`, which names the image. */
enum { PSEG_ENGINE_MAX_KEY = 300 };
void pseg_engine_features_key(const pseg_engine *e, char out[PSEG_ENGINE_MAX_KEY + 1],
                              const char *content);
/* In place of pseg_engine_prepare: w is prepared, and encoded as soon as it runs. Features have
 * gone through float16: each number is within 1/2048 of itself, and masks differ from those of the
 * image by as little. Errors: PSEG_R_INVALID_ARGUMENT, if that is not what this engine packs. */
pseg_status pseg_engine_restore(pseg_engine *e, pseg_work *w, pseg_bytes packed, pseg_err *err);
/* After a run: the features of w's image, in w's arena, if they were made in it and nobody has
 * taken them yet; else data = NULL. One thread at a time. */
pseg_bytes pseg_engine_take_features(pseg_engine *e, pseg_work *w);

/* On the first device. One thread at a time. is_cancelled(ud), asked before each stage, may stop
 * it: PSEG_R_CANCELLED. NULL: never. After PSEG_EDEVICE the device is of no more use. */
pseg_status pseg_engine_run(pseg_engine *e, pseg_work *w, bool (*is_cancelled)(void *ud), void *ud,
                            pseg_err *err);

/* A work of a batch, and what became of it. */
typedef struct pseg_engine_job {
    pseg_work *work;
    void *ud; /* for is_cancelled */
    pseg_status rc;
    pseg_err err; /* of rc */
} pseg_engine_job;

/* What a batch took; for whoever counts. */
typedef struct pseg_engine_batch {
    size_t n_encodes; /* images that were encoded in it */
    size_t n_texts;   /* phrases that were encoded in it */
    const pseg_picture *encoded[PSEG_ENGINE_MAX_JOBS];
    size_t n_prompts[PSEG_ENGINE_MAX_JOBS]; /* of each of these: the phrases decoded on it */
    size_t n_pairs;                         /* of image and phrase, decoded */
} pseg_engine_batch;

/* The same for n works, at most PSEG_ENGINE_MAX_JOBS: each image is encoded once, and equal pairs
 * of image and phrase are decoded once. What a step takes is told to the works that share it in
 * equal parts. A step that fails ends all works of the batch with its error, though one of them may
 * be to blame: those that are run again by themselves find out. Masks are to the bit those of the
 * works run one by one, as long as images are encoded singly. One thread at a time for each
 * device. */
void pseg_engine_run_batch(pseg_engine *e, size_t device, pseg_engine_job *jobs, size_t n,
                           bool (*is_cancelled)(void *ud), pseg_engine_batch *done);
/* Where there are several devices, to be asked for each work before a batch that has it. False: its
 * image is at work on another, and no other is to take the work before that run ends. What a run
 * claimed is free again when it returns. Any thread. */
bool pseg_engine_claim(pseg_engine *e, size_t device, pseg_work *w);
/* It is not to be run there after all. */
void pseg_engine_unclaim(pseg_engine *e, size_t device, pseg_work *w);
/* Do encoded images stay on a device for their next phrases? Any thread. */
bool pseg_engine_keeps_images(const pseg_engine *e);
/* Are its image's features at hand? Any thread. */
bool pseg_engine_is_encoded(pseg_engine *e, const pseg_work *w);
/* How many images one pass of the encoder takes on the device. Any thread. */
size_t pseg_engine_max_encode(const pseg_engine *e, size_t device);
/* How many phrases one pass of the decoder takes. Any thread. */
size_t pseg_engine_max_decode(const pseg_engine *e);

/* Any thread. */
pseg_status pseg_engine_finish(pseg_engine *e, pseg_work *w, pseg_err *err);

#endif
