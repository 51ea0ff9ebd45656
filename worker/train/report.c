#include "worker/train/report.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "worker/train/events.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_LOG ((size_t)1 << 30)
#define MAX_SVG ((size_t)16 << 20)

struct pseg_report {
    char *log, *svg; /* paths */
    int fd;
    pseg_events *events;
    pseg_report_epoch *epochs;
    size_t n, cap;
    pseg_buf line;
};

/* ---- reading back ---------------------------------------------------------------------------- */

/* The number after "key": in a line of our own, or NAN. */
static double number_of(const char *line, const char *key)
{
    char name[32];
    const char *at;
    char *end;

    snprintf(name, sizeof name, "\"%s\":", key);
    at = strstr(line, name);
    if (!at)
        return NAN;
    double v = strtod(at + strlen(name), &end);
    return end == at + strlen(name) ? NAN : v;
}

static pseg_status remember(pseg_report *r, const pseg_report_epoch *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (r->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 64;
        pseg_report_epoch *p = pseg_realloc(r->epochs, cap * sizeof *p);
        if (!p)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for curves");
        r->epochs = p;
        r->cap = cap;
    }
    r->epochs[r->n++] = *e;
out:
    return rc;
}

/* Keeps what the checkpoint knows of, and learns the epochs. */
static pseg_status cut(pseg_report *r, uint64_t from_step, uint64_t from_epoch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t len = 0, kept = 0;

    if (!pseg_file_exists(r->log) || from_step + from_epoch == 0)
        goto write;
    PSEG_TRY(pseg_file_read(&text, &len, r->log, MAX_LOG, err));
    for (size_t at = 0; at < len;) {
        char *line = (char *)text + at, *end = memchr(line, '\n', len - at);
        if (!end)
            break; /* a line that was cut by a fall */
        size_t n = (size_t)(end - line) + 1;
        *end = '\0';
        bool is_epoch = strstr(line, "\"type\":\"epoch\"");
        double place = number_of(line, is_epoch ? "epoch" : "step");
        bool keeps = place < (double)(is_epoch ? from_epoch : from_step);
        if (is_epoch && keeps)
            PSEG_TRY(remember(r,
                              &(pseg_report_epoch){.epoch = (uint64_t)place,
                                                   .loss = number_of(line, "loss"),
                                                   .iou = number_of(line, "iou"),
                                                   .val_loss = number_of(line, "val_loss"),
                                                   .val_iou = number_of(line, "val_iou")},
                              err));
        *end = '\n';
        if (keeps) {
            memmove(text + kept, line, n);
            kept += n;
        }
        at += n;
    }
write:
    PSEG_TRY(pseg_file_write(r->log, text ? text : (const uint8_t *)"", kept, err));
out:
    pseg_free(text);
    return rc;
}

pseg_status pseg_report_open(pseg_report **out, const char *folder, uint64_t from_step,
                             uint64_t from_epoch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_report *r = pseg_calloc(1, sizeof *r);

    *out = NULL;
    if (!r)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a log");
    r->fd = -1;
    pseg_buf_init(&r->line, (size_t)1 << 20);
    r->log = pseg_path_join(folder, "log.jsonl");
    r->svg = pseg_path_join(folder, "curves.svg");
    if (!r->log || !r->svg)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a log");
    PSEG_TRY(cut(r, from_step, from_epoch, err));
    r->fd = open(r->log, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (r->fd < 0)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", r->log, strerror(errno));
    PSEG_TRY(pseg_events_open(&r->events, folder, from_step, err));
    *out = r;
    r = NULL;
out:
    pseg_report_close(r);
    return rc;
}

void pseg_report_close(pseg_report *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    pseg_events_close(r->events);
    pseg_buf_deinit(&r->line);
    pseg_free(r->log);
    pseg_free(r->svg);
    pseg_free(r->epochs);
    pseg_free(r);
}

/* ---- the log --------------------------------------------------------------------------------- */

/* One write a line, so that a reader sees whole lines. */
static pseg_status end_line(pseg_report *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_buf_puts(&r->line, "}\n", err));
    for (size_t at = 0; at < r->line.len;) {
        ssize_t n = write(r->fd, r->line.data + at, r->line.len - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", r->log, strerror(errno));
        at += (size_t)n;
    }
out:
    pseg_buf_clear(&r->line);
    return rc;
}

/* ,"key":value; JSON has no word for what is not a number. */
static pseg_status add_real(pseg_report *r, const char *key, double v, pseg_err *err)
{
    return isfinite(v) ? pseg_buf_printf(&r->line, err, ",\"%s\":%.17g", key, v)
                       : pseg_buf_printf(&r->line, err, ",\"%s\":null", key);
}

static pseg_status begin_step(pseg_report *r, const char *type, const pseg_report_step *s,
                              pseg_err *err)
{
    return pseg_buf_printf(&r->line, err,
                           "{\"type\":\"%s\",\"step\":%" PRIu64 ",\"epoch\":%" PRIu64
                           ",\"batch\":%" PRIu64,
                           type, s->step, s->epoch, s->batch);
}

pseg_status pseg_report_add_step(pseg_report *r, const pseg_report_step *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_scalar scalars[] = {{"train/loss", s->loss}, {"train/bce", s->bce},
                                   {"train/dice", s->dice}, {"train/iou_loss", s->iou_loss},
                                   {"train/iou", s->iou},   {"step/norm", s->norm},
                                   {"step/lr", s->lr},      {"step/images_per_s", s->images_per_s}};

    PSEG_TRY(begin_step(r, "step", s, err));
    PSEG_TRY(add_real(r, "loss", s->loss, err));
    PSEG_TRY(add_real(r, "bce", s->bce, err));
    PSEG_TRY(add_real(r, "dice", s->dice, err));
    PSEG_TRY(add_real(r, "iou_loss", s->iou_loss, err));
    PSEG_TRY(add_real(r, "iou", s->iou, err));
    PSEG_TRY(add_real(r, "norm", s->norm, err));
    PSEG_TRY(add_real(r, "lr", s->lr, err));
    PSEG_TRY(pseg_buf_printf(&r->line, err, ",\"images_per_s\":%.4g,\"seconds\":%.3f",
                             s->images_per_s, s->seconds));
    PSEG_TRY(end_line(r, err));
    PSEG_TRY(pseg_events_add(r->events, s->step, scalars, sizeof scalars / sizeof *scalars, err));
out:
    pseg_buf_clear(&r->line);
    return rc;
}

pseg_status pseg_report_add_skip(pseg_report *r, const pseg_report_step *s,
                                 const char *const *samples, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(begin_step(r, "skip", s, err));
    PSEG_TRY(pseg_buf_puts(&r->line, ",\"samples\":[", err));
    for (size_t i = 0; i < n; i++) {
        PSEG_TRY(pseg_buf_puts(&r->line, i ? ",\"" : "\"", err));
        for (const char *p = samples[i]; *p; p++)
            PSEG_TRY((unsigned char)*p < 0x20 || *p == '"' || *p == '\\'
                         ? pseg_buf_printf(&r->line, err, "\\u%04x", (unsigned)(unsigned char)*p)
                         : pseg_buf_append(&r->line, p, 1, err));
        PSEG_TRY(pseg_buf_puts(&r->line, "\"", err));
    }
    PSEG_TRY(pseg_buf_puts(&r->line, "]", err));
    PSEG_TRY(end_line(r, err));
out:
    pseg_buf_clear(&r->line);
    return rc;
}

/* ---- curves ---------------------------------------------------------------------------------- */

enum { WIDTH = 720, HEIGHT = 300, LEFT = 56, RIGHT = 16, TOP = 34, BOTTOM = 40, GAP = 24 };

typedef double pick_fn(const pseg_report_epoch *e);
static double pick_loss(const pseg_report_epoch *e)
{
    return e->loss;
}
static double pick_val_loss(const pseg_report_epoch *e)
{
    return e->val_loss;
}
static double pick_iou(const pseg_report_epoch *e)
{
    return e->iou;
}
static double pick_val_iou(const pseg_report_epoch *e)
{
    return e->val_iou;
}

/* A panel: its title, its two lines, and what its height stands for. */
typedef struct panel {
    const char *title;
    pick_fn *train, *val;
    double top;
    int y;
} panel;

static double across(const pseg_report *r, size_t i)
{
    double last = r->n > 1 ? (double)(r->n - 1) : 1;

    return LEFT + (WIDTH - LEFT - RIGHT) * (double)i / last;
}

static double down(const panel *p, double v)
{
    double share = v / p->top;

    share = share < 0 ? 0 : share > 1 ? 1 : share;
    return p->y + TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
}

static pseg_status draw_line(pseg_buf *b, const pseg_report *r, const panel *p, pick_fn *pick,
                             const char *colour, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = 0;

    PSEG_TRY(pseg_buf_printf(b, err, "<polyline fill='none' stroke='%s' stroke-width='2' points='",
                             colour));
    for (size_t i = 0; i < r->n; i++)
        if (isfinite(pick(&r->epochs[i])))
            PSEG_TRY(pseg_buf_printf(b, err, "%s%.1f,%.1f", n++ ? " " : "", across(r, i),
                                     down(p, pick(&r->epochs[i]))));
    PSEG_TRY(pseg_buf_puts(b, "'/>\n", err));
    for (size_t i = 0; i < r->n; i++)
        if (isfinite(pick(&r->epochs[i])))
            PSEG_TRY(pseg_buf_printf(
                b, err,
                "<circle cx='%.1f' cy='%.1f' r='2.5' fill='%s'><title>epoch %" PRIu64
                ": %.4f</title></circle>\n",
                across(r, i), down(p, pick(&r->epochs[i])), colour, r->epochs[i].epoch + 1,
                pick(&r->epochs[i])));
out:
    return rc;
}

static pseg_status draw_panel(pseg_buf *b, const pseg_report *r, const panel *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_buf_printf(b, err,
                             "<text x='%d' y='%d' font-size='15'>%s</text>\n"
                             "<text x='%d' y='%d' fill='#1f6fb4'>training</text>\n"
                             "<text x='%d' y='%d' fill='#c8501e'>validation</text>\n",
                             LEFT, p->y + 20, p->title, WIDTH - 190, p->y + 20, WIDTH - 100,
                             p->y + 20));
    for (int i = 0; i <= 4; i++) {
        double v = p->top * i / 4;
        PSEG_TRY(pseg_buf_printf(b, err,
                                 "<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='#ddd'/>"
                                 "<text x='%d' y='%.1f' text-anchor='end'>%.3g</text>\n",
                                 LEFT, WIDTH - RIGHT, down(p, v), down(p, v), LEFT - 6,
                                 down(p, v) + 4, v));
    }
    size_t stride = r->n > 20 ? (r->n + 19) / 20 : 1;
    for (size_t i = 0; i < r->n; i += stride)
        PSEG_TRY(pseg_buf_printf(
            b, err, "<text x='%.1f' y='%d' text-anchor='middle'>%" PRIu64 "</text>\n", across(r, i),
            p->y + HEIGHT - BOTTOM + 18, r->epochs[i].epoch + 1));
    PSEG_TRY(draw_line(b, r, p, p->train, "#1f6fb4", err));
    PSEG_TRY(draw_line(b, r, p, p->val, "#c8501e", err));
out:
    return rc;
}

static pseg_status draw(pseg_report *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    panel loss = {"loss by epoch", pick_loss, pick_val_loss, 1e-6, 0};
    panel iou = {"IoU by epoch", pick_iou, pick_val_iou, 1, HEIGHT + GAP};
    pseg_buf b;

    pseg_buf_init(&b, MAX_SVG);
    for (size_t i = 0; i < r->n; i++) {
        loss.top = fmax(loss.top, r->epochs[i].loss); /* fmax passes NAN over */
        loss.top = fmax(loss.top, r->epochs[i].val_loss);
    }
    PSEG_TRY(pseg_buf_printf(&b, err,
                             "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
                             "font-family='sans-serif' font-size='12'>\n"
                             "<rect width='100%%' height='100%%' fill='white'/>\n",
                             WIDTH, 2 * HEIGHT + GAP));
    PSEG_TRY(draw_panel(&b, r, &loss, err));
    PSEG_TRY(draw_panel(&b, r, &iou, err));
    PSEG_TRY(pseg_buf_puts(&b, "</svg>\n", err));
    PSEG_TRY(pseg_file_write(r->svg, b.data, b.len, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}

pseg_status pseg_report_add_epoch(pseg_report *r, const pseg_report_epoch *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_scalar scalars[] = {{"epoch/loss", e->loss},
                                   {"epoch/iou", e->iou},
                                   {"validation/loss", e->val_loss},
                                   {"validation/iou", e->val_iou},
                                   {"validation/iou_50", e->val_iou_50},
                                   {"validation/pred_off", e->val_pred_off}};
    uint64_t last = e->step ? e->step - 1 : 0; /* a run that goes on behind it keeps it */

    PSEG_TRY(pseg_buf_printf(&r->line, err,
                             "{\"type\":\"epoch\",\"epoch\":%" PRIu64 ",\"step\":%" PRIu64,
                             e->epoch, e->step));
    PSEG_TRY(add_real(r, "loss", e->loss, err));
    PSEG_TRY(add_real(r, "iou", e->iou, err));
    PSEG_TRY(add_real(r, "val_loss", e->val_loss, err));
    PSEG_TRY(add_real(r, "val_iou", e->val_iou, err));
    PSEG_TRY(add_real(r, "val_iou_50", e->val_iou_50, err));
    PSEG_TRY(add_real(r, "val_pred_off", e->val_pred_off, err));
    PSEG_TRY(pseg_buf_printf(&r->line, err, ",\"best\":%s,\"seconds\":%.3f",
                             e->is_best ? "true" : "false", e->seconds));
    PSEG_TRY(end_line(r, err));
    PSEG_TRY(pseg_events_add(r->events, last, scalars, sizeof scalars / sizeof *scalars, err));
    PSEG_TRY(remember(r, e, err));
    PSEG_TRY(draw(r, err));
out:
    pseg_buf_clear(&r->line);
    return rc;
}
