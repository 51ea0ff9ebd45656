/* pseg segment: one image through the service, with pictures of the result. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/show/show.h"

#include <stdio.h>
#include <string.h>

typedef struct args {
    cli cli;
    job_args job;
    const char *out;
    bool side_by_side;
} args;

static const pseg_conf_option options[] = {
    CLI_OPTIONS,
    JOB_OPTIONS(args, job),
    {"out", PSEG_CONF_STRING, offsetof(args, out), "pseg-out", .unit = "DIR", .letter = 'o',
     .help = "folder for original, mask and overlay"},
    {"side_by_side", PSEG_CONF_BOOL, offsetof(args, side_by_side), "false",
     .help = "also all three in one picture"},
    {0}};

static pseg_status show_masks(args *a, const Pseg__V1__Job *job, pseg_show *show, json_t *files,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *data = NULL;
    pseg_mask *m = NULL;
    pseg_shown shown = {0};
    size_t len;

    for (size_t i = 0; i < job->n_results; i++) {
        Pseg__V1__Mask head = PSEG__V1__MASK__INIT;
        PSEG_TRY(cli_fetch_mask(&data, &len, &head, &a->cli, job->name, (uint32_t)i,
                                PSEG__V1__MASK_ENCODING__MASK_ENCODING_COCO_RLE, 0, err));
        PSEG_TRY(pseg_mask_from_rle(&m, (const char *)data, head.width, head.height, err));
        PSEG_TRY(pseg_show_mask(&shown, show, i, m, err));
        json_t *j = json_pack("{s:o, s:o}", "mask", json_text(shown.mask), "overlay",
                              json_text(shown.overlay));
        if (shown.side_by_side)
            json_object_set_new(j, "side_by_side", json_text(shown.side_by_side));
        json_array_append_new(files, j);
        if (!a->cli.json) {
            printf("\"%s\": predicted IoU %.3f, area %llu px\n  mask     %s\n  overlay  %s\n",
                   job->prompts[i]->text, (double)job->results[i]->predicted_iou,
                   (unsigned long long)job->results[i]->area_px, shown.mask, shown.overlay);
            if (shown.side_by_side)
                printf("  together %s\n", shown.side_by_side);
        }
        pseg_shown_free(&shown);
        pseg_mask_free(m);
        pseg_free(data);
        m = NULL;
        data = NULL;
    }
out:
    pseg_shown_free(&shown);
    pseg_mask_free(m);
    pseg_free(data);
    return rc;
}

static pseg_status segment(args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    Pseg__V1__Job *created = NULL, *job = NULL;
    pseg_image *photo = NULL;
    uint8_t *image = NULL;
    char *original = NULL;
    json_t *files = json_array();
    size_t len = 0;

    if (!a->job.image || a->job.prompts.n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--image FILE and --prompt TEXT are needed (--help tells more)");
    PSEG_TRY(pseg_file_read(&image, &len, a->job.image, limits.max_bytes, err));
    PSEG_TRY(pseg_image_init(err));
    /* Here first: a file that cannot be read should not cost a trip. */
    PSEG_TRY(pseg_image_decode(&photo, image, len, &limits, err));
    PSEG_TRY(cli_dial(&a->cli, err));
    PSEG_TRY(cli_create_job(&created, &a->cli, &a->job, image, len, err));
    PSEG_TRY(cli_wait_job(&job, &a->cli, created->name, err));
    PSEG_TRY(cli_job_status(job, err));
    pseg_show show = {a->out, a->side_by_side, image, len, photo, job->n_results};
    PSEG_TRY(pseg_show_original(&original, &show, err));
    if (!a->cli.json)
        printf("original %s\n", original);
    PSEG_TRY(show_masks(a, job, &show, files, err));
    if (a->cli.json) {
        json_t *j = json_of_job(job);
        json_object_set_new(j, "original", json_text(original));
        json_object_set(j, "files", files);
        print_json(&a->cli, j);
    }
out:
    if (created)
        pseg_rpc_message_free(&created->base);
    if (job)
        pseg_rpc_message_free(&job->base);
    json_decref(files);
    pseg_free(original);
    pseg_image_free(photo);
    pseg_free(image);
    return rc;
}

static int run(const command *self, int argc, char **argv)
{
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!cli_begin(&conf, &a, self, options, argc, argv, &status))
        return status;
    if (segment(&a, &err) != PSEG_OK)
        status = cli_fail(&a.cli, &err);
    cli_end(&a.cli, conf);
    return status;
}

const command segment_command = {
    "segment",
    {"pseg segment", "--image FILE --prompt TEXT [--prompt TEXT ...] [--out DIR]",
     "Sends an image and phrases, waits, and writes original, mask and overlay into a folder.",
     "pseg segment --image scene.png --prompt \"the small red circle\" --out result\n"
     "pseg segment --image scene.png --prompt \"a star\" --prompt \"the ring\" --side-by-side "
     "--json",
     CLI_AFTER},
    0,
    run};
