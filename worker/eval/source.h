/* Where an evaluation's examples come from: a data set on disk, or scenes drawn by seed, behind one
 * interface. A source gives for each image its phrases at once, and on demand its pixels and masks.
 *
 * Threads: after opening, all calls but close may come from any thread at a time. */
#ifndef PSEG_EVAL_SOURCE_H
#define PSEG_EVAL_SOURCE_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "common/image/image.h"
#include "common/mask/mask.h"

#include <stdint.h>

typedef struct pseg_eval_source pseg_eval_source;

/* What can be wrong with a piece of what is evaluated. Counted, told, left out. */
#define PSEG_EVAL_FAULTS(X)             \
    X(RECORD, "bad_record")             \
    X(IMAGE_MISSING, "image_missing")   \
    X(IMAGE_BROKEN, "image_broken")     \
    X(MASK_BROKEN, "mask_broken")       \
    X(MASK_SIZE, "mask_size")           \
    X(MASK_EMPTY, "mask_empty")         \
    X(PHRASE_BAD, "phrase_bad")         \
    X(PHRASE_REFUSED, "phrase_refused") \
    X(NOT_FINITE, "prediction_not_finite")
typedef enum pseg_eval_fault {
#define PSEG_EVAL_FAULT_ENUM(id, name) PSEG_EVAL_FAULT_##id,
    PSEG_EVAL_FAULTS(PSEG_EVAL_FAULT_ENUM)
#undef PSEG_EVAL_FAULT_ENUM
        PSEG_EVAL_N_FAULTS
} pseg_eval_fault;
const char *pseg_eval_fault_name(pseg_eval_fault f); /* static, as in the JSON */

/* where: "photo.jpg" or "annotations.jsonl:12"; what: one line. Called from any thread, one at a
 * time. */
typedef void pseg_eval_report_fn(void *ud, pseg_eval_fault fault, const char *where,
                                 const char *what);

/* One phrase of an image. Text lives in the arena that was given. */
typedef struct pseg_eval_phrase {
    const char *text;
    const char *kind, *category; /* "" where the data do not say */
    uint32_t target;             /* which of the image's masks it means */
    uint32_t sentence;           /* its number among those of the target */
    uint32_t swap;               /* a phrase of this image that means another target; UINT32_MAX */
} pseg_eval_phrase;

typedef struct pseg_eval_listing {
    const char *name; /* of the image, the same in every run on the same data */
    pseg_eval_phrase *phrases;
    uint32_t n;
} pseg_eval_listing;

/* An image that is in work. */
typedef struct pseg_eval_photo {
    uint32_t width, height; /* px */
    float rect[4];          /* as of pseg_image_preprocess */
    void *held;             /* the source's own */
} pseg_eval_photo;

struct pseg_eval_source {
    uint32_t n_images;
    char description[256]; /* "scenes, seeds 0 to 999, 224 px" */
    char digest[65];       /* SHA-256 in hexadecimal of what is evaluated, phrases included; "" */
    uint64_t faults[PSEG_EVAL_N_FAULTS]; /* met while opening */
    void (*close)(pseg_eval_source *s);
    pseg_status (*list)(pseg_eval_listing *out, pseg_eval_source *s, uint32_t image,
                        pseg_arena *arena, pseg_err *err);
    /* chw: 3 * how->height * how->width numbers. After success, unload. Errors that are the data's
     * fault, whose images are left out: PSEG_R_FILE_NOT_FOUND, PSEG_R_IMAGE_... */
    pseg_status (*load)(pseg_eval_photo *out, float *chw, pseg_eval_source *s, uint32_t image,
                        const pseg_preprocess *how, pseg_err *err);
    void (*unload)(pseg_eval_source *s, pseg_eval_photo *p);
    /* The mask of a target, of whatever size it has; caller frees with pseg_mask_free. */
    pseg_status (*truth)(pseg_mask **out, pseg_eval_source *s, const pseg_eval_photo *p,
                         uint32_t target, pseg_err *err);
    /* The photo itself, for a picture of a case; caller frees with pseg_image_free. */
    pseg_status (*picture)(pseg_image **out, pseg_eval_source *s, uint32_t image, pseg_err *err);
};

/* NULL is accepted. */
void pseg_eval_source_close(pseg_eval_source *s);

/* Scenes with seeds first .. first + count - 1 (worker/scenes), size_px wide and high. `swap` is a
 * phrase about the object that the scene names as the other, where there is one: what
 * tests/golden/eval_scenes.py takes. Errors: PSEG_R_OUT_OF_MEMORY, PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_eval_source_scenes(pseg_eval_source **out, uint64_t first, uint32_t count,
                                    int size_px, pseg_err *err);
/* Is `text` "scenes:FIRST-LAST" or "scenes:FIRST-LAST@SIZE"? size is 0 where none is given. */
bool pseg_eval_is_scenes(const char *text, uint64_t *first, uint32_t *count, int *size);

#endif
