#include "worker/apps/eval.h"
#include "common/base/clock.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

enum { MAX_SHOWN = 10 };

static void show(unsigned *shown, const char *reason, const char *where, const char *what)
{
    if (++*shown > MAX_SHOWN + 1)
        return;
    if (*shown == MAX_SHOWN + 1)
        fprintf(stderr, "warning: %s: more of these are counted, not shown\n", reason);
    else
        fprintf(stderr, "warning: %s: %s: %s\n", reason, where, what);
}

void eval_show_fault(void *ud, pseg_eval_fault fault, const char *where, const char *what)
{
    eval_faults *f = ud;

    show(&f->shown[fault], pseg_eval_fault_name(fault), where, what);
}

void eval_show_data_fault(void *ud, pseg_data_fault fault, const char *where, const char *what)
{
    eval_faults *f = ud;

    show(&f->shown[PSEG_EVAL_N_FAULTS + fault], pseg_data_fault_name(fault), where, what);
}

void eval_progress_begin(eval_progress *p, const char *what)
{
    p->what = what;
    p->start_ms = p->shown_ms = pseg_clock_mono_ms();
    p->is_shown = false;
}

void eval_progress_show(void *ud, uint32_t images, uint32_t of)
{
    eval_progress *p = ud;
    int64_t now = pseg_clock_mono_ms();
    bool is_terminal = isatty(STDERR_FILENO);

    if (p->is_quiet || now - p->start_ms < 1000 || now - p->shown_ms < (is_terminal ? 200 : 10000))
        return;
    double rate = images * 1000.0 / (double)(now - p->start_ms);
    p->shown_ms = now;
    p->is_shown = is_terminal;
    fprintf(stderr, "%s%s: %u of %u images, %.1f images/s, %.0f s to go%s",
            is_terminal ? "\r\033[K" : "", p->what, images, of, rate,
            rate > 0 ? (of - images) / rate : 0, is_terminal ? "" : "\n");
}

void eval_progress_end(eval_progress *p)
{
    if (p->is_shown)
        fputs("\r\033[K", stderr);
    p->is_shown = false;
}

static void print_interval(const pseg_eval_interval *i)
{
    char text[64];
    int n = isfinite(i->value) ? snprintf(text, sizeof text, "%.3f", i->value)
                               : snprintf(text, sizeof text, "-");

    if (isfinite(i->low) && isfinite(i->high))
        snprintf(text + n, sizeof text - (size_t)n, " (%.3f to %.3f)", i->low, i->high);
    printf("  %-24s", text);
}

void eval_print_summary(const pseg_eval_report *r, const char *folder)
{
    const pseg_eval_analysis *a = r->analysis;
    uint64_t left_out = 0;

    printf("model %s, %.12s\n%s: %u phrases of %u images\n\n%-35s", r->model->name,
           r->model->digest, r->data, a->n, a->n_images, "");
    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++)
        if (a->n_of[w])
            printf("  %-24s", pseg_eval_which_name((pseg_eval_which)w));
    putchar('\n');
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++) {
        printf("%-35s", pseg_eval_figure_words((pseg_eval_figure)f));
        for (int w = 0; w < PSEG_EVAL_N_RUNS; w++)
            if (a->n_of[w])
                print_interval(&a->figures[w][f]);
        putchar('\n');
    }
    putchar('\n');
    for (int w = 1; w < PSEG_EVAL_N_RUNS; w++)
        if (a->n_of[w])
            printf("%s: %s\n", pseg_eval_which_name((pseg_eval_which)w),
                   pseg_eval_which_words((pseg_eval_which)w));
    if (r->other)
        printf("mean IoU less that of %s, paired: %.4f (%.4f to %.4f)\n", r->other->name,
               r->other->difference[PSEG_EVAL_MEAN_IOU].value,
               r->other->difference[PSEG_EVAL_MEAN_IOU].low,
               r->other->difference[PSEG_EVAL_MEAN_IOU].high);
    for (int f = 0; f < PSEG_EVAL_N_FAULTS; f++)
        left_out += r->faults[f];
    if (left_out)
        printf("left out: ");
    for (int f = 0; f < PSEG_EVAL_N_FAULTS; f++)
        if (r->faults[f])
            printf("%s %" PRIu64 "  ", pseg_eval_fault_name((pseg_eval_fault)f), r->faults[f]);
    printf("%s%.1f s, of which the device %.1f s\n%s/report.html, %s/report.json%s\n",
           left_out ? "\n" : "", (double)r->run->total_us / 1e6, (double)r->run->device_us / 1e6,
           folder, folder, r->has_records ? ", records.jsonl" : "");
}
