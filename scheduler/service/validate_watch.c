/* Checks of WatchJobs, and of the names of batches. */
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

#define ID_CHARACTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

pseg_status pseg_check_batch_name(const char **id, const char *name, const char *field,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = strncmp(name, "batches/", 8) == 0 ? strlen(name + 8) : 0;

    *id = NULL;
    if (n < 1 || n > 64 || strspn(name + 8, ID_CHARACTERS) != n) {
        rc = pseg_err_set(err, PSEG_R_NAME_INVALID, 0, PSEG_HERE,
                          "%s \"%.80s\" must be \"batches/\" and 1 to 64 of [A-Za-z0-9._-]", field,
                          name);
        pseg_err_field(err, "%s", field);
        pseg_err_value(err, "%.70s", name);
        pseg_err_limit(err, "batches/[A-Za-z0-9._-]{1,64}");
        goto out;
    }
    *id = name + 8;
out:
    return rc;
}

pseg_status pseg_check_watch(pseg_queue_place *from, const char **batch,
                             const Pseg__V1__WatchJobsRequest *q, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *id;

    *batch = "";
    if (q->n_names > PSEG_MAX_WATCH_NAMES) {
        rc = pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                          "%zu names are over the limit of %d; watch them by several calls, by "
                          "their batch, or all of the tenant's",
                          q->n_names, PSEG_MAX_WATCH_NAMES);
        pseg_err_field(err, "names");
        pseg_err_value(err, "%zu", q->n_names);
        pseg_err_limit(err, "%d", PSEG_MAX_WATCH_NAMES);
        goto out;
    }
    if (q->n_names && *q->batch) {
        rc = pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                          "names and batch \"%.80s\" exclude each other; leave one of them empty",
                          q->batch);
        pseg_err_field(err, "batch");
        pseg_err_value(err, "%.70s", q->batch);
        pseg_err_limit(err, "empty beside names");
        goto out;
    }
    for (size_t i = 0; i < q->n_names; i++) {
        rc = pseg_check_job_name(&id, q->names[i], err);
        if (rc != PSEG_OK) {
            snprintf(err->field, sizeof err->field, "names[%zu]", i);
            goto out;
        }
    }
    if (*q->batch)
        PSEG_TRY(pseg_check_batch_name(batch, q->batch, "batch", err));
    if (*q->resume_token && !pseg_queue_place_parse(from, q->resume_token)) {
        rc = pseg_err_set(err, PSEG_R_PAGE_TOKEN_INVALID, 0, PSEG_HERE,
                          "resume_token of %zu bytes is not one that this server gave; start with "
                          "an empty one",
                          strlen(q->resume_token));
        pseg_err_field(err, "resume_token");
        pseg_err_value(err, "%.70s", q->resume_token);
        pseg_err_limit(err, "resume_token of an earlier message");
    }
out:
    return rc;
}
