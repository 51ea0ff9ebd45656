/* What pseg-train tells on its two streams. */
#include "worker/apps/train.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <sys/resource.h>

static void remaining(char *out, size_t size, double s)
{
    if (!(s >= 0) || s > 1e8)
        snprintf(out, size, "?");
    else if (s < 90)
        snprintf(out, size, "%.0f s", s);
    else if (s < 5400)
        snprintf(out, size, "%.0f min", s / 60);
    else
        snprintf(out, size, "%.1f h", s / 3600);
}

void train_print_event(void *ud, const pseg_train_event *e)
{
    bool is_terminal = *(const bool *)ud;
    char left[32];

    remaining(left, sizeof left, e->remaining_s);
    switch (e->kind) {
    case PSEG_TRAIN_STEPPED:
        if (is_terminal)
            fprintf(stderr,
                    "\r\033[Kepoch %" PRIu64 "/%" PRIu64 "  step %" PRIu64 "/%" PRIu64
                    "  loss %.4f  IoU %.3f  %.3g samples/s  %s left",
                    e->epoch + 1, e->epochs, e->step, e->steps, e->loss, e->iou, e->images_per_s,
                    left);
        break;
    case PSEG_TRAIN_SKIPPED:
        fprintf(stderr, "%sstep %" PRIu64 " skipped, its loss is not a number: %s\n",
                is_terminal ? "\r\033[K" : "", e->step, e->text);
        break;
    case PSEG_TRAIN_EPOCH_DONE:
        fprintf(stderr, "%sepoch %" PRIu64 "/%" PRIu64 "  loss %.4f  IoU %.4f",
                is_terminal ? "\r\033[K" : "", e->epoch, e->epochs, e->loss, e->iou);
        if (isfinite(e->val_iou))
            fprintf(stderr, "  validation: loss %.4f  IoU %.4f%s", e->val_loss, e->val_iou,
                    e->is_best ? " (best)" : "");
        fprintf(stderr, "  %.3g samples/s  %s left\n", e->images_per_s, left);
        break;
    case PSEG_TRAIN_STOPPED_EARLY:
        fprintf(stderr, "no better validation for long: the run ends here\n");
        break;
    case PSEG_TRAIN_VALIDATED:
        break;
    }
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

void train_print_summary(const train_args *a, const pseg_trainer *t)
{
    pseg_train_summary s;
    struct rusage use = {0};

    pseg_trainer_sum_up(&s, t);
    getrusage(RUSAGE_SELF, &use);
    if (a->json) {
        json_t *best = s.state.best_iou >= 0 ? json_real(s.state.best_iou) : json_null();
        program_print(json_pack("{s:o, s:b, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:f, s:f, s:f}",
                                "folder", program_text(a->out), "done", s.is_done, "epochs",
                                (json_int_t)s.state.epoch, "steps", (json_int_t)s.state.step,
                                "params", (json_int_t)s.params, "best_iou", best, "best_epoch",
                                (json_int_t)s.state.best_epoch + 1, "skipped_steps",
                                (json_int_t)s.skipped, "cut_phrases", (json_int_t)s.cut_phrases,
                                "seconds", s.state.seconds, "graph_mib", mib(s.graph_bytes),
                                "peak_mib", (double)use.ru_maxrss / 1024));
        return;
    }
    printf("%s after %" PRIu64 " epochs, %" PRIu64 " steps, %.0f s", s.is_done ? "done" : "stopped",
           s.state.epoch, s.state.step, s.state.seconds);
    if (s.state.best_iou >= 0)
        printf("; best IoU %.4f in epoch %" PRIu64, s.state.best_iou, s.state.best_epoch + 1);
    printf("\n");
    if (s.skipped || s.cut_phrases)
        printf("%" PRIu64 " steps skipped, %" PRIu64 " phrases cut\n", s.skipped, s.cut_phrases);
    printf("%s\n  model    %s\n", s.is_stopped ? "--resume goes on" : "", a->out);
}

void train_print_profile(const pseg_trainer *t)
{
    pseg_profile_entry found[64];
    size_t n = pseg_stream_profile(found, 64, pseg_trainer_stream(t));

    for (size_t i = 0; i < n && i < 64; i++)
        fprintf(stderr, "%-26s %8" PRIu64 " launches %10.1f ms\n", found[i].name, found[i].launches,
                found[i].total_ms);
}
