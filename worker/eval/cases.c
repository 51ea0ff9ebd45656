#include "worker/eval/cases.h"
#include "common/base/alloc.h"

#include <string.h>

/* Colours that remain apart for eyes that see few: Okabe and Ito, 2008. */
static const uint8_t right_rgb[3] = {0, 158, 115}, wrong_rgb[3] = {213, 94, 0},
                     missed_rgb[3] = {86, 180, 233}, truth_rgb[3] = {240, 228, 66};

/* ---- which ---- */

typedef struct picker {
    const pseg_eval_plan *plan;
    const pseg_eval_analysis *a;
    uint32_t *entries;
    pseg_eval_case_kind *kinds;
    size_t n;
} picker;

static bool is_taken(const picker *p, uint32_t entry, size_t since, bool by_image)
{
    for (size_t i = 0; i < p->n; i++) {
        if (p->entries[i] == entry)
            return true;
        if (by_image && i >= since &&
            p->plan->entries[p->entries[i]].image == p->plan->entries[entry].image)
            return true;
    }
    return false;
}

/* Takes up to wanted entries along the ranking, from `from` by step; images of their own first. */
static void pick(picker *p, pseg_eval_case_kind kind, uint32_t from, int step)
{
    size_t since = p->n;

    for (int by_image = 1; by_image >= 0; by_image--)
        for (int64_t k = from; k >= 0 && k < p->a->n; k += step) {
            uint32_t entry = p->a->ranking[k];
            if (p->n - since == PSEG_EVAL_CASES_OF_A_KIND)
                return;
            if (is_taken(p, entry, since, by_image))
                continue;
            p->entries[p->n] = entry;
            p->kinds[p->n++] = kind;
        }
}

size_t pseg_eval_pick_cases(uint32_t entries[PSEG_EVAL_MAX_CASES],
                            pseg_eval_case_kind kinds[PSEG_EVAL_MAX_CASES], const pseg_eval_plan *p,
                            const pseg_eval_analysis *a)
{
    picker all = {p, a, entries, kinds, 0};
    uint32_t before = a->n / 2 > 2 ? a->n / 2 - 2 : 0;

    pick(&all, PSEG_EVAL_CASE_BEST, 0, 1);
    pick(&all, PSEG_EVAL_CASE_MEDIAN, before, 1);
    pick(&all, PSEG_EVAL_CASE_WORST, a->n - 1, -1);
    return all.n;
}

/* ---- pictures ---- */

/* A photo made small, and what part of each small pixel lies in the two masks. */
typedef struct small {
    uint32_t width, height;
    uint8_t *rgb;            /* [height, width, 3] */
    uint8_t *truth, *answer; /* [height, width], 1 inside */
} small;

static void small_free(small *s)
{
    pseg_free(s->rgb);
    pseg_free(s->truth);
    pseg_free(s->answer);
}

/* Inside where half of the pixels that are joined in one are. */
static void shrink_mask(uint8_t *out, const small *s, const pseg_mask *m)
{
    for (uint32_t y = 0; y < s->height; y++) {
        uint64_t y0 = (uint64_t)y * m->height / s->height;
        uint64_t y1 = (uint64_t)(y + 1) * m->height / s->height;
        for (uint32_t x = 0; x < s->width; x++) {
            uint64_t x0 = (uint64_t)x * m->width / s->width;
            uint64_t x1 = (uint64_t)(x + 1) * m->width / s->width, inside = 0, all = 0;
            for (uint64_t v = y0; v < y1 || v == y0; v++)
                for (uint64_t u = x0; u < x1 || u == x0; u++, all++)
                    inside += m->data[v * m->width + u];
            out[(size_t)y * s->width + x] = 2 * inside >= all;
        }
    }
}

static pseg_status small_make(small *s, const pseg_image *photo, const pseg_mask *truth,
                              const pseg_mask *answer, uint32_t max_side, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t side = photo->width > photo->height ? photo->width : photo->height;
    uint32_t to = side < max_side ? side : max_side;

    *s = (small){.width = (uint32_t)((uint64_t)photo->width * to / side),
                 .height = (uint32_t)((uint64_t)photo->height * to / side)};
    s->width += s->width == 0;
    s->height += s->height == 0;
    size_t n = (size_t)s->width * s->height;
    s->rgb = pseg_malloc(3 * n);
    s->truth = pseg_malloc(n);
    s->answer = pseg_malloc(n);
    if (!s->rgb || !s->truth || !s->answer)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a picture of %u x %u", s->width,
                  s->height);
    PSEG_TRY(pseg_image_resize(s->rgb, s->width, s->height, photo->rgb, photo->width, photo->height,
                               err));
    shrink_mask(s->truth, s, truth);
    shrink_mask(s->answer, s, answer);
out:
    return rc;
}

static bool is_edge(const small *s, const uint8_t *mask, uint32_t x, uint32_t y)
{
    const uint8_t *at = mask + (size_t)y * s->width + x;

    return *at && ((x > 0 && !at[-1]) || (x + 1 < s->width && !at[1]) ||
                   (y > 0 && !*(at - s->width)) || (y + 1 < s->height && !at[s->width]));
}

/* The photo in grey and dim, and in it the truth alone, or right, wrong and missed. */
static void paint(uint8_t *out, const small *s, bool is_answer)
{
    for (uint32_t y = 0; y < s->height; y++)
        for (uint32_t x = 0; x < s->width; x++) {
            size_t at = (size_t)y * s->width + x;
            const uint8_t *p = s->rgb + 3 * at;
            bool truth = s->truth[at], answer = is_answer && s->answer[at];
            int grey = (p[0] * 77 + p[1] * 150 + p[2] * 29) >> 8;
            const uint8_t *tint = !is_answer        ? truth_rgb
                                  : truth && answer ? right_rgb
                                  : truth           ? missed_rgb
                                                    : wrong_rgb;
            bool edge = is_edge(s, is_answer ? s->answer : s->truth, x, y);
            for (int c = 0; c < 3; c++)
                out[3 * at + (size_t)c] =
                    (uint8_t)(edge              ? 255
                              : truth || answer ? (grey * 6 + tint[c] * 14) / 20
                                                : (grey * 3 + p[c] * 2) / 7);
        }
}

static pseg_status make_pictures(pseg_eval_case *c, const small *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *room = pseg_malloc(3 * (size_t)s->width * s->height);
    pseg_buf *const outs[] = {&c->photo, &c->truth, &c->answer};

    if (!room)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a picture of %u x %u", s->width,
                  s->height);
    for (int i = 0; i < 3; i++) {
        if (i > 0)
            paint(room, s, i == 2);
        pseg_image picture = {i == 0 ? s->rgb : room, s->width, s->height};
        PSEG_TRY(pseg_image_jpeg(outs[i], &picture, 84, err));
    }
    c->width = s->width;
    c->height = s->height;
out:
    pseg_free(room);
    return rc;
}

typedef struct scene {
    pseg_model *m;
    pseg_eval_source *s;
    const pseg_eval_plan *p;
    float threshold;
    uint32_t max_side;
} scene;

static pseg_status make_case(pseg_eval_case *c, const scene *of, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image *photo = NULL;
    pseg_mask *truth = NULL, *answer = NULL;
    small s = {0};

    PSEG_TRY(pseg_eval_mask_of(&answer, &truth, of->m, of->s, of->p, c->entry, of->threshold, err));
    PSEG_TRY(of->s->picture(&photo, of->s, of->p->entries[c->entry].image, err));
    if (photo->width != truth->width || photo->height != truth->height)
        PSEG_FAIL(PSEG_R_IMAGE_UNDECODABLE, 0, "the image has changed while it was evaluated");
    PSEG_TRY(small_make(&s, photo, truth, answer, of->max_side, err));
    PSEG_TRY(make_pictures(c, &s, err));
out:
    small_free(&s);
    pseg_image_free(photo);
    pseg_mask_free(truth);
    pseg_mask_free(answer);
    return rc;
}

static void case_deinit(pseg_eval_case *c)
{
    pseg_buf_deinit(&c->photo);
    pseg_buf_deinit(&c->truth);
    pseg_buf_deinit(&c->answer);
}

pseg_status pseg_eval_cases_new(pseg_eval_cases **out, pseg_model *m, pseg_eval_source *s,
                                const pseg_eval_plan *p, const pseg_eval_analysis *a,
                                float threshold, uint32_t max_side, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_cases *cases = pseg_calloc(1, sizeof *cases);
    uint32_t entries[PSEG_EVAL_MAX_CASES];
    pseg_eval_case_kind kinds[PSEG_EVAL_MAX_CASES];
    scene of = {m, s, p, threshold, max_side};
    size_t n = pseg_eval_pick_cases(entries, kinds, p, a);

    *out = NULL;
    if (!cases || !(cases->all = pseg_calloc(n, sizeof *cases->all)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu cases", n);
    for (size_t i = 0; i < n; i++) {
        pseg_err own = PSEG_ERR_INIT;
        pseg_eval_case *c = &cases->all[cases->n];
        *c = (pseg_eval_case){.kind = kinds[i], .entry = entries[i]};
        pseg_buf_init(&c->photo, 1 << 20);
        pseg_buf_init(&c->truth, 1 << 20);
        pseg_buf_init(&c->answer, 1 << 20);
        rc = make_case(c, &of, &own);
        if (rc == PSEG_OK) {
            cases->n++;
            continue;
        }
        case_deinit(c);
        if (rc == PSEG_ENOMEM || rc == PSEG_EDEVICE || rc == PSEG_EINTERNAL) {
            if (err)
                *err = own;
            goto out;
        }
        rc = PSEG_OK;
    }
    *out = cases;
    cases = NULL;
out:
    pseg_eval_cases_free(cases);
    return rc;
}

void pseg_eval_cases_free(pseg_eval_cases *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++)
        case_deinit(&c->all[i]);
    pseg_free(c->all);
    pseg_free(c);
}
