/* pseg-run: an image and phrases through the engine in one process; the files are those that
 * `pseg segment` writes, byte for byte. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/show/show.h"
#include "pseg/internal/v1/record.pb-c.h"
#include "worker/apps/engine_options.h"
#include "worker/apps/program.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct args {
    engine_args engine;
    const char *image, *out;
    pseg_conf_list prompts;
    double threshold;
    bool side_by_side, json, verbose;
} args;

static const pseg_conf_option options[] = {
    {"image", PSEG_CONF_STRING, offsetof(args, image), NULL, .unit = "FILE", .letter = 'i',
     .help = "JPEG, PNG, WebP, TIFF or HEIC; - is standard input"},
    {"prompt", PSEG_CONF_LIST, offsetof(args, prompts), NULL, .unit = "TEXT", .letter = 'p',
     .help = "what to find; may be given again"},
    {"out", PSEG_CONF_STRING, offsetof(args, out), "pseg-out", .unit = "DIR", .letter = 'o',
     .help = "folder for original, mask and overlay"},
    {"threshold", PSEG_CONF_REAL, offsetof(args, threshold), "0.5", .min = 1e-6, .max = 0.999999,
     .help = "probability above which a pixel counts"},
    {"side_by_side", PSEG_CONF_BOOL, offsetof(args, side_by_side), "false",
     .help = "also all three in one picture"},
    ENGINE_OPTIONS(args, engine),
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {"verbose", PSEG_CONF_BOOL, offsetof(args, verbose), "false", .letter = 'v',
     .help = "log what happens"},
    {0}};

static pseg_status show_all(const args *a, const pseg_work *w, const pseg_show *show,
                            json_t *results, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__Internal__V1__JobResult *r =
        pseg__internal__v1__job_result__unpack(NULL, w->result.len, w->result.data);
    pseg_shown shown = {0};
    pseg_mask *m = NULL;

    if (!r)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the result does not parse");
    for (size_t i = 0; i < w->n_prompts; i++) {
        const Pseg__Internal__V1__PromptResult *p = r->results[i];
        PSEG_TRY(pseg_mask_make(&m, &w->grids[i], w->threshold, err));
        PSEG_TRY(pseg_show_mask(&shown, show, i, m, err));
        json_t *j = json_pack("{s:i, s:o, s:f, s:I, s:o, s:o}", "prompt_index", (int)i, "prompt",
                              program_text(w->prompts[i]), "predicted_iou",
                              (double)p->predicted_iou, "area_px", (json_int_t)p->area_px, "mask",
                              program_text(shown.mask), "overlay", program_text(shown.overlay));
        if (p->box_width)
            json_object_set_new(j, "box",
                                json_pack("[i,i,i,i]", (int)p->box_x, (int)p->box_y,
                                          (int)p->box_width, (int)p->box_height));
        if (shown.side_by_side)
            json_object_set_new(j, "side_by_side", program_text(shown.side_by_side));
        json_array_append_new(results, j);
        if (!a->json)
            printf("\"%s\": predicted IoU %.3f, area %llu px\n  mask     %s\n  overlay  %s\n",
                   w->prompts[i], (double)p->predicted_iou, (unsigned long long)p->area_px,
                   shown.mask, shown.overlay);
        pseg_shown_free(&shown);
        pseg_mask_free(m);
        m = NULL;
    }
out:
    if (r)
        pseg__internal__v1__job_result__free_unpacked(r, NULL);
    pseg_shown_free(&shown);
    pseg_mask_free(m);
    return rc;
}

static void print_all(const pseg_engine *e, const pseg_work *w, const char *original,
                      json_t *results)
{
    json_t *stages = json_object();

    for (size_t i = 0; i < w->n_stages; i++)
        json_object_set_new(stages, w->stages[i].name, json_real((double)w->stages[i].us / 1e3));
    program_print(json_pack(
        "{s:o, s:s, s:o, s:i, s:i, s:o, s:O, s:o}", "model", program_text(pseg_engine_name(e)),
        "model_digest", pseg_engine_digest(e), "device", program_text(pseg_engine_device(e, 0)),
        "image_width", (int)w->width, "image_height", (int)w->height, "original",
        program_text(original), "results", results, "stages_ms", stages));
}

static pseg_status check_prompts(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!a->image || a->prompts.n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--image FILE and --prompt TEXT are needed (--help tells more)");
    for (size_t i = 0; i < a->prompts.n; i++) {
        size_t n = strlen(a->prompts.items[i]);
        if (strspn(a->prompts.items[i], " \t\r\n") == n)
            PSEG_FAIL(PSEG_R_PROMPT_EMPTY, 0, "prompt %zu is blank", i);
        if (n > 1024)
            PSEG_FAIL(PSEG_R_PROMPT_TOO_LONG, 0,
                      "prompt %zu of %zu bytes is over the limit of 1024", i, n);
    }
out:
    return rc;
}

static pseg_status run(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_log log = {a->verbose ? PSEG_LOG_DEBUG : PSEG_LOG_WARN, STDERR_FILENO};
    pseg_arena *arena = pseg_arena_new((size_t)1 << 30);
    pseg_work w = {.arena = arena,
                   .prompts = a->prompts.items,
                   .n_prompts = a->prompts.n,
                   .threshold = (float)a->threshold};
    json_t *results = json_array();
    program_progress *progress = NULL;
    pseg_engine_options eo;
    pseg_engine *e = NULL;
    pseg_image *photo = NULL;
    uint8_t *image = NULL;
    char *folder = NULL, *original = NULL;
    size_t len = 0;

    if (!arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory");
    PSEG_TRY(check_prompts(a, err));
    PSEG_TRY(engine_options_of(&eo, &folder, &a->engine, &log, err));
    PSEG_TRY(pseg_file_read(&image, &len, a->image, eo.limits.max_bytes, err));
    PSEG_TRY(pseg_image_init(err));
    progress = program_progress_begin("opening the model (kernels are compiled the first time)");
    PSEG_TRY(pseg_engine_open(&e, &eo, err));
    PSEG_TRY(pseg_engine_prepare(e, &w, NULL, (pseg_bytes){image, len}, &photo, err));
    program_progress_stage(progress, "segmenting");
    PSEG_TRY(pseg_engine_run(e, &w, NULL, NULL, err));
    PSEG_TRY(pseg_engine_finish(e, &w, err));
    program_progress_end(progress);
    progress = NULL;
    pseg_show show = {a->out, a->side_by_side, image, len, photo, w.n_prompts};
    PSEG_TRY(pseg_show_original(&original, &show, err));
    if (!a->json)
        printf("original %s\n", original);
    PSEG_TRY(show_all(a, &w, &show, results, err));
    if (a->json)
        print_all(e, &w, original, results);
out:
    program_progress_end(progress);
    json_decref(results);
    pseg_work_free(e, &w);
    pseg_image_free(photo);
    pseg_engine_close(e);
    pseg_free(image);
    pseg_free(folder);
    pseg_free(original);
    pseg_arena_free(arena);
    return rc;
}

int main(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg run",
        .usage = "--image FILE --prompt TEXT [--prompt TEXT ...] [--out DIR]",
        .what =
            "Segments one image in this process, without a server, and writes original, mask and\n"
            "overlay into a folder: the same files that `pseg segment` writes.",
        .example = "pseg run --image scene.png --prompt \"the small red circle\" --out result"};
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (program_begin(&conf, &a, options, &about, argc, argv, &status))
        status = program_end(run(&a, &err), &err, a.json);
    pseg_conf_free(conf);
    return status;
}
