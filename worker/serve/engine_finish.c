#include "worker/serve/engine_internal.h"
#include "common/base/half.h"
#include "common/base/version.h"
#include "pseg/internal/v1/record.pb-c.h"

static pseg_status finish_one(pseg_engine *e, pseg_work *w, size_t i,
                              Pseg__Internal__V1__PromptResult *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = pseg_engine_grid(e);
    pseg_mask m;
    uint16_t *half = pseg_arena_alloc(w->arena, n * sizeof *half);

    if (!half)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", w->n_prompts);
    pseg_half_from_floats(half, w->logits + i * n, n);
    w->masks[i] = (pseg_bytes){(const uint8_t *)half, n * sizeof *half};
    w->grids[i] = (pseg_mask_grid){.logits = half,
                                   .grid_width = e->info ? e->info->mask_width : 1,
                                   .grid_height = e->info ? e->info->mask_height : 1,
                                   .width = w->width,
                                   .height = w->height,
                                   .x0 = w->rect[0],
                                   .y0 = w->rect[1],
                                   .x1 = w->rect[2],
                                   .y1 = w->rect[3]};
    pseg__internal__v1__prompt_result__init(r);
    if (e->info) {
        PSEG_TRY(pseg_mask_measure(&m, &w->grids[i], w->threshold, err));
        r->area_px = m.area;
        r->box_x = m.box_x;
        r->box_y = m.box_y;
        r->box_width = m.box_width;
        r->box_height = m.box_height;
    }
    r->predicted_iou = w->iou[i];
    r->truncated = w->truncated[i];
    r->grid_width = w->grids[i].grid_width;
    r->grid_height = w->grids[i].grid_height;
    r->x0 = w->rect[0];
    r->y0 = w->rect[1];
    r->x1 = w->rect[2];
    r->y1 = w->rect[3];
out:
    return rc;
}

pseg_status pseg_engine_finish(pseg_engine *e, pseg_work *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_arena *a = w->arena;
    Pseg__Internal__V1__JobResult all = PSEG__INTERNAL__V1__JOB_RESULT__INIT;
    Pseg__Internal__V1__PromptResult *results = pseg_arena_calloc(a, w->n_prompts, sizeof *results);
    Pseg__Internal__V1__Stage *stages = pseg_arena_calloc(a, w->n_stages, sizeof *stages);

    all.results = pseg_arena_calloc(a, w->n_prompts, sizeof *all.results);
    all.stages = pseg_arena_calloc(a, w->n_stages, sizeof *all.stages);
    w->masks = pseg_arena_calloc(a, w->n_prompts, sizeof *w->masks);
    w->grids = pseg_arena_calloc(a, w->n_prompts, sizeof *w->grids);
    if (!results || !stages || !all.results || !all.stages || !w->masks || !w->grids)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the result of %zu prompts", w->n_prompts);
    for (size_t i = 0; i < w->n_prompts; i++) {
        PSEG_TRY(finish_one(e, w, i, &results[i], err));
        all.results[all.n_results++] = &results[i];
    }
    for (size_t i = 0; i < w->n_stages; i++) {
        pseg__internal__v1__stage__init(&stages[i]);
        stages[i].name = (char *)(uintptr_t)w->stages[i].name;
        stages[i].duration_us = (uint64_t)w->stages[i].us;
        all.stages[all.n_stages++] = &stages[i];
    }
    all.image_width = w->width;
    all.image_height = w->height;
    all.model = e->name;
    all.model_digest = e->digest;
    all.kernel_digest = e->kernel_digest;
    all.device = e->devices[w->device].name;
    all.driver = e->devices[w->device].driver;
    all.precision =
        (char *)(uintptr_t)pseg_precision_name(e->info ? e->info->precision : PSEG_PRECISION_FP32);
    all.worker = e->worker;
    all.worker_version = (char *)(uintptr_t)PSEG_VERSION;
    uint8_t *data = pseg_arena_alloc(a, pseg__internal__v1__job_result__get_packed_size(&all));
    if (!data)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the result of %zu prompts", w->n_prompts);
    w->result = (pseg_bytes){data, pseg__internal__v1__job_result__pack(&all, data)};
out:
    return rc;
}
