/* Jobs as JSON and as lines. */
#include "client/client.h"
#include "common/base/clock.h"
#include "common/job/job.h"

#include <stdio.h>
#include <string.h>

static void set_time(json_t *j, const char *key, const Google__Protobuf__Timestamp *t)
{
    char text[32];

    if (!t)
        return;
    pseg_clock_format_unix_us(text, t->seconds * 1000000 + t->nanos / 1000);
    json_object_set_new(j, key, json_text(text));
}

static json_t *json_of_result(const Pseg__V1__PromptResult *r, const char *prompt)
{
    json_t *j = json_pack("{s:i, s:o, s:f, s:I}", "prompt_index", (int)r->prompt_index, "prompt",
                          json_text(prompt), "predicted_iou", (double)r->predicted_iou, "area_px",
                          (json_int_t)r->area_px);

    if (r->box)
        json_object_set_new(j, "box",
                            json_pack("[i,i,i,i]", (int)r->box->x, (int)r->box->y,
                                      (int)r->box->width, (int)r->box->height));
    if (r->truncated)
        json_object_set_new(j, "truncated", json_true());
    return j;
}

static json_t *json_of_receipt(const Pseg__V1__Receipt *r)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "model", r->model,
                     "model_digest", r->model_digest, "kernel_digest", r->kernel_digest, "device",
                     r->device, "driver", r->driver, "precision", r->precision, "worker", r->worker,
                     "worker_version", r->worker_version, "scheduler_version",
                     r->scheduler_version);
}

/* The reason from the error's ErrorInfo is in its message's details; the code says enough here. */
static json_t *json_of_error(const Google__Rpc__Status *e)
{
    return json_pack("{s:i, s:o}", "code", (int)e->code, "message", json_text(e->message));
}

json_t *json_of_job(const Pseg__V1__Job *job)
{
    json_t *j = json_object(), *list;

    json_object_set_new(j, "name", json_text(job->name));
    json_object_set_new(j, "state", json_text(pseg_job_state_name((pseg_job_state)job->state)));
    json_object_set_new(j, "request_id", json_text(job->request_id));
    json_object_set_new(j, "model", json_text(job->model));
    json_object_set_new(j, "image_sha256", json_text(job->image_sha256));
    json_object_set_new(j, "mask_threshold", json_real((double)job->mask_threshold));
    json_object_set_new(j, "attempts", json_integer(job->attempts));
    if (job->cancel_requested)
        json_object_set_new(j, "cancel_requested", json_true());
    json_object_set_new(j, "prompts", list = json_array());
    for (size_t i = 0; i < job->n_prompts; i++)
        json_array_append_new(list, json_text(job->prompts[i]->text));
    json_object_set_new(j, "labels", list = json_object());
    for (size_t i = 0; i < job->n_labels; i++)
        json_object_set_new(list, job->labels[i]->key, json_text(job->labels[i]->value));
    if (job->n_results) {
        json_object_set_new(j, "image_width", json_integer(job->image_width));
        json_object_set_new(j, "image_height", json_integer(job->image_height));
        json_object_set_new(j, "results", list = json_array());
        for (size_t i = 0; i < job->n_results; i++)
            json_array_append_new(
                list,
                json_of_result(job->results[i], i < job->n_prompts ? job->prompts[i]->text : ""));
    }
    if (job->error)
        json_object_set_new(j, "error", json_of_error(job->error));
    set_time(j, "create_time", job->create_time);
    set_time(j, "start_time", job->start_time);
    set_time(j, "finish_time", job->finish_time);
    set_time(j, "deadline", job->deadline);
    set_time(j, "expire_time", job->expire_time);
    if (job->n_stages) {
        json_object_set_new(j, "stages_ms", list = json_object());
        for (size_t i = 0; i < job->n_stages; i++)
            json_object_set_new(list, job->stages[i]->stage,
                                json_real((double)job->stages[i]->duration->seconds * 1e3 +
                                          (double)job->stages[i]->duration->nanos / 1e6));
    }
    if (job->receipt)
        json_object_set_new(j, "receipt", json_of_receipt(job->receipt));
    return j;
}

void print_job(const Pseg__V1__Job *job)
{
    printf("%s %s model=%s attempts=%u%s\n", job->name,
           pseg_job_state_name((pseg_job_state)job->state), job->model, job->attempts,
           job->cancel_requested ? " (cancellation asked for)" : "");
    if (job->error)
        printf("  error: %s\n", job->error->message);
    for (size_t i = 0; i < job->n_prompts; i++) {
        printf("  %zu: \"%s\"", i, job->prompts[i]->text);
        if (i < job->n_results) {
            const Pseg__V1__PromptResult *r = job->results[i];
            printf(" predicted IoU %.3f, area %llu px", (double)r->predicted_iou,
                   (unsigned long long)r->area_px);
            if (r->box)
                printf(", box %u,%u %ux%u", r->box->x, r->box->y, r->box->width, r->box->height);
        }
        putchar('\n');
    }
}
