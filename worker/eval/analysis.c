#include "worker/eval/analysis.h"
#include "common/base/alloc.h"
#include "worker/eval/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *pseg_eval_which_name(pseg_eval_which w)
{
    static const char *const names[] = {
#define NAME(id, name, words) name,
        PSEG_EVAL_RUNS(NAME)
#undef NAME
    };
    return names[w];
}

const char *pseg_eval_which_words(pseg_eval_which w)
{
    static const char *const all[] = {
#define WORDS(id, name, words) words,
        PSEG_EVAL_RUNS(WORDS)
#undef WORDS
    };
    return all[w];
}

const char *pseg_eval_grouping_name(pseg_eval_grouping g)
{
    static const char *const names[] = {"phrase_length", "kind",         "relation",
                                        "object_size",   "object_share", "category"};
    return names[g];
}

const char *pseg_eval_grouping_words(pseg_eval_grouping g)
{
    static const char *const words[] = {
        "Words of the phrase",          "Kind of phrase, as the data say",
        "Relation named by the phrase", "Size of the object",
        "Share of the photo",           "Category"};
    return words[g];
}

/* ---- examples ---- */

/* What an outcome gives for a run; false: nothing. */
static bool example_of(pseg_eval_example *e, const pseg_eval_outcome *o, uint32_t image,
                       pseg_eval_which which)
{
    const pseg_eval_count painted = {.area = (uint64_t)o->width * o->height,
                                     .both = o->truth,
                                     .predicted = NAN,
                                     .is_there = true};
    const pseg_eval_count *const counts[] = {&o->own, &o->shuffled, &o->swapped, &painted,
                                             &o->tuned};
    const pseg_eval_count *c = counts[which];

    *e = (pseg_eval_example){image, o->truth, c->area, c->both, (double)c->predicted};
    return o->is_done && c->is_there;
}

double pseg_eval_outcome_iou(const pseg_eval_outcome *o)
{
    pseg_eval_example e;

    example_of(&e, o, 0, PSEG_EVAL_OWN);
    return pseg_eval_iou(&e);
}

/* ---- groups ---- */

/* What one image adds to a group: a group's figures are quotients of such sums, so that a replicate
 * costs by images and not by phrases. */
typedef struct part {
    uint32_t image;
    double n, iou, both, either, above, n_shuffled, shuffled, painted;
} part;

typedef struct group {
    pseg_eval_group of;
    part *parts;
    size_t n_parts, cap;
} group;

enum { GROUP_STATISTICS = 5, BIN_STATISTICS = 2 };

typedef struct maker {
    const pseg_eval_plan *plan;
    const pseg_eval_run *run;
    pseg_eval_set *sets[PSEG_EVAL_N_RUNS]; /* NULL: nothing there */
    group *groups;
    size_t n_groups;
    uint32_t *category; /* [plan's texts]: group of a category, kind: of a kind */
    uint32_t *kind;
    size_t base[PSEG_EVAL_N_GROUPINGS]; /* the first group of each */
    uint32_t *image; /* [plan's images]: the place of an image among those with an outcome */
} maker;

static const char *const length_labels[] = {"1", "2", "3",    "4",     "5",     "6",
                                            "7", "8", "9-10", "11-15", "16-25", "26 and more"};
static const char *const size_labels[] = {"small, below 32² px", "medium, below 96² px", "large"};
static const char *const share_labels[] = {"below 1 %",  "1 to 5 %",   "5 to 10 %",
                                           "10 to 25 %", "25 to 50 %", "above 50 %"};
#define N(a) (sizeof(a) / sizeof *(a))

static uint32_t length_class(uint32_t words)
{
    if (words <= 8)
        return words ? words - 1 : 0;
    return words <= 10 ? 8 : words <= 15 ? 9 : words <= 25 ? 10 : 11;
}

static uint32_t size_class(uint64_t area)
{
    return area < 32 * 32 ? 0 : area < 96 * 96 ? 1 : 2;
}

static uint32_t share_class(double share)
{
    return share < 0.01   ? 0
           : share < 0.05 ? 1
           : share < 0.1  ? 2
           : share < 0.25 ? 3
           : share < 0.5  ? 4
                          : 5;
}

static pseg_status group_add(group *g, const pseg_eval_outcome *o, uint32_t image, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_example own, shuffled, painted;

    if (g->n_parts == 0 || g->parts[g->n_parts - 1].image != image) {
        if (g->n_parts == g->cap) {
            size_t cap = g->cap ? 2 * g->cap : 16;
            part *parts = pseg_realloc(g->parts, cap * sizeof *parts);
            if (!parts)
                PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the groups of phrases");
            g->parts = parts;
            g->cap = cap;
        }
        g->parts[g->n_parts++] = (part){.image = image};
    }
    part *p = &g->parts[g->n_parts - 1];
    example_of(&own, o, image, PSEG_EVAL_OWN);
    double iou = pseg_eval_iou(&own);
    p->n++;
    p->iou += iou;
    p->above += iou > 0.5;
    p->both += (double)own.both;
    p->either += (double)(own.truth + own.area - own.both);
    if (example_of(&shuffled, o, image, PSEG_EVAL_SHUFFLED)) {
        p->n_shuffled++;
        p->shuffled += pseg_eval_iou(&shuffled);
    }
    example_of(&painted, o, image, PSEG_EVAL_PAINTED);
    p->painted += pseg_eval_iou(&painted);
    g->of.n++;
out:
    return rc;
}

static void group_statistics(double out[GROUP_STATISTICS], const group *g, const uint32_t *weight)
{
    part s = {0};

    for (size_t i = 0; i < g->n_parts; i++) {
        const part *p = &g->parts[i];
        double w = weight ? weight[p->image] : 1;
        s.n += w * p->n;
        s.iou += w * p->iou;
        s.both += w * p->both;
        s.either += w * p->either;
        s.above += w * p->above;
        s.n_shuffled += w * p->n_shuffled;
        s.shuffled += w * p->shuffled;
        s.painted += w * p->painted;
    }
    out[0] = s.iou / s.n;
    out[1] = s.n > 0 && !(s.either > 0) ? 1 : s.both / s.either;
    out[2] = s.above / s.n;
    out[3] = s.shuffled / s.n_shuffled;
    out[4] = s.painted / s.n;
}

typedef struct tally {
    uint32_t text, n;
} tally;

static int compare_tallies(const void *a, const void *b)
{
    const tally *x = a, *y = b;

    if (x->n != y->n)
        return x->n > y->n ? -1 : 1;
    return x->text < y->text ? -1 : x->text > y->text;
}

/* Gives each text that occurs as a kind (or category) a place, the most frequent first; the rest
 * share the last. place: [texts]. Empty texts have none. */
static pseg_status rank_texts(uint32_t **place, const char ***labels, uint32_t *n_labels,
                              const maker *m, bool is_kind, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t n = m->plan->texts.n, found = 0;
    tally *all = pseg_calloc(n, sizeof *all);

    *labels = pseg_calloc(PSEG_EVAL_MAX_CATEGORIES, sizeof **labels);
    *place = pseg_calloc(n, sizeof **place);
    if (!all || !*labels || !*place)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u categories", n);
    for (uint32_t i = 0; i < n; i++) {
        all[i].text = i;
        (*place)[i] = PSEG_EVAL_NONE;
    }
    for (uint32_t i = 0; i < m->plan->n; i++)
        if (m->run->outcomes[i].is_done)
            all[is_kind ? m->plan->entries[i].kind : m->plan->entries[i].category].n++;
    qsort(all, n, sizeof *all, compare_tallies);
    for (uint32_t i = 0; i < n && all[i].n > 0; i++) {
        const char *text = m->plan->texts.text[all[i].text];
        if (!text[0])
            continue;
        uint32_t at = found < PSEG_EVAL_MAX_CATEGORIES ? found : PSEG_EVAL_MAX_CATEGORIES - 1;
        (*labels)[at] = found < PSEG_EVAL_MAX_CATEGORIES ? text : "all others";
        (*place)[all[i].text] = at;
        found++;
    }
    *n_labels = found < PSEG_EVAL_MAX_CATEGORIES ? found : PSEG_EVAL_MAX_CATEGORIES;
out:
    pseg_free(all);
    return rc;
}

static void put_groups(maker *m, pseg_eval_grouping grouping, const char *const *labels, size_t n)
{
    m->base[grouping] = m->n_groups;
    for (size_t i = 0; i < n; i++)
        m->groups[m->n_groups++].of = (pseg_eval_group){.grouping = grouping, .label = labels[i]};
}

static pseg_status make_groups(maker *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char **kinds = NULL, **categories = NULL, *relations[PSEG_EVAL_N_RELATIONS];
    uint32_t n_kinds = 0, n_categories = 0;

    for (int r = 0; r < PSEG_EVAL_N_RELATIONS; r++)
        relations[r] = pseg_eval_relation_name((pseg_eval_relation)r);
    PSEG_TRY(rank_texts(&m->kind, &kinds, &n_kinds, m, true, err));
    PSEG_TRY(rank_texts(&m->category, &categories, &n_categories, m, false, err));
    m->groups = pseg_calloc(N(length_labels) + n_kinds + N(relations) + N(size_labels) +
                                N(share_labels) + n_categories,
                            sizeof *m->groups);
    if (!m->groups)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the groups of phrases");
    put_groups(m, PSEG_EVAL_BY_LENGTH, length_labels, N(length_labels));
    put_groups(m, PSEG_EVAL_BY_KIND, kinds, n_kinds);
    put_groups(m, PSEG_EVAL_BY_RELATION, relations, N(relations));
    put_groups(m, PSEG_EVAL_BY_SIZE, size_labels, N(size_labels));
    put_groups(m, PSEG_EVAL_BY_SHARE, share_labels, N(share_labels));
    put_groups(m, PSEG_EVAL_BY_CATEGORY, categories, n_categories);
out:
    pseg_free(kinds);
    pseg_free(categories);
    return rc;
}

static pseg_status add_to_groups(maker *m, uint32_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_entry *e = &m->plan->entries[i];
    const pseg_eval_outcome *o = &m->run->outcomes[i];
    const char *text = m->plan->texts.text[e->phrase];
    uint32_t relations = pseg_eval_relations(text);
    double share = (double)o->truth / ((double)o->width * o->height);
    size_t at[5] = {m->base[PSEG_EVAL_BY_LENGTH] + length_class(pseg_eval_count_words(text)),
                    m->base[PSEG_EVAL_BY_SIZE] + size_class(o->truth),
                    m->base[PSEG_EVAL_BY_SHARE] + share_class(share)};
    int n = 3;

    if (m->kind[e->kind] != PSEG_EVAL_NONE)
        at[n++] = m->base[PSEG_EVAL_BY_KIND] + m->kind[e->kind];
    if (m->category[e->category] != PSEG_EVAL_NONE)
        at[n++] = m->base[PSEG_EVAL_BY_CATEGORY] + m->category[e->category];
    for (int k = 0; k < n; k++)
        PSEG_TRY(group_add(&m->groups[at[k]], o, m->image[e->image], err));
    for (int r = 0; r < PSEG_EVAL_N_RELATIONS; r++)
        if (relations >> r & 1)
            PSEG_TRY(group_add(&m->groups[m->base[PSEG_EVAL_BY_RELATION] + (size_t)r], o,
                               m->image[e->image], err));
out:
    return rc;
}

/* ---- all statistics together ---- */

static size_t n_statistics(const maker *m)
{
    return (size_t)PSEG_EVAL_N_RUNS * PSEG_EVAL_N_FIGURES + PSEG_EVAL_BINS * BIN_STATISTICS +
           m->n_groups * GROUP_STATISTICS;
}

static void statistics(void *ud, double *out, const uint32_t *weight, double *scratch)
{
    const maker *m = ud;
    pseg_eval_reliability bins[PSEG_EVAL_BINS];

    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++, out += PSEG_EVAL_N_FIGURES) {
        if (m->sets[w])
            pseg_eval_figures(out, m->sets[w], weight, scratch);
        else
            for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
                out[f] = NAN;
    }
    pseg_eval_reliability_of(bins, m->sets[PSEG_EVAL_OWN], weight);
    for (int b = 0; b < PSEG_EVAL_BINS; b++) {
        *out++ = bins[b].predicted;
        *out++ = bins[b].iou;
    }
    for (size_t g = 0; g < m->n_groups; g++, out += GROUP_STATISTICS)
        group_statistics(out, &m->groups[g], weight);
}

static void hand_out(pseg_eval_analysis *a, const maker *m, const pseg_eval_interval *from)
{
    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++, from += PSEG_EVAL_N_FIGURES)
        memcpy(a->figures[w], from, sizeof a->figures[w]);
    for (int b = 0; b < PSEG_EVAL_BINS; b++) {
        a->bins[b].predicted = *from++;
        a->bins[b].iou = *from++;
    }
    for (size_t g = 0; g < m->n_groups; g++, from += GROUP_STATISTICS) {
        pseg_eval_group *to = &a->groups[a->n_groups];
        *to = m->groups[g].of;
        to->iou = from[0];
        to->ciou = from[1];
        to->p50 = from[2];
        to->shuffled = from[3];
        to->painted = from[4];
        a->n_groups += to->n > 0;
    }
}

/* ---- the whole ---- */

static pseg_status make_sets(pseg_eval_analysis *a, maker *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_plan *p = m->plan;
    pseg_eval_example *room = pseg_calloc(p->n, sizeof *room);

    if (!room)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u examples", p->n);
    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++) {
        size_t n = 0;
        for (uint32_t i = 0; i < p->n; i++)
            n += example_of(&room[n], &m->run->outcomes[i], m->image[p->entries[i].image],
                            (pseg_eval_which)w);
        a->n_of[w] = (uint32_t)n;
        if (n > 0)
            PSEG_TRY(pseg_eval_set_new(&m->sets[w], room, n, a->n_images, err));
        const double *iou = n > 0 ? pseg_eval_set_ious(m->sets[w]) : NULL;
        for (size_t i = 0; i < n; i++) {
            int b = (int)(iou[i] * PSEG_EVAL_HISTOGRAM);
            a->histogram[w][b < PSEG_EVAL_HISTOGRAM ? b : PSEG_EVAL_HISTOGRAM - 1]++;
        }
    }
out:
    pseg_free(room);
    return rc;
}

typedef struct ranked {
    double iou;
    uint32_t entry;
} ranked;

static int compare_ranked(const void *a, const void *b)
{
    const ranked *x = a, *y = b;

    if (x->iou != y->iou)
        return x->iou > y->iou ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

static pseg_status look_over(pseg_eval_analysis *a, maker *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_plan *p = m->plan;
    ranked *all = pseg_calloc(p->n, sizeof *all);
    uint32_t image = PSEG_EVAL_NONE;

    a->ranking = pseg_calloc(p->n, sizeof *a->ranking);
    m->image = pseg_calloc(p->n_images, sizeof *m->image);
    if (!all || !a->ranking || !m->image)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", p->n);
    for (uint32_t i = 0; i < p->n; i++) {
        const pseg_eval_outcome *o = &m->run->outcomes[i];
        if (!o->is_done)
            continue;
        all[a->n++] = (ranked){pseg_eval_outcome_iou(o), i};
        a->n_cut += o->is_cut;
        a->n_images += p->entries[i].image != image;
        image = p->entries[i].image;
        m->image[image] = a->n_images - 1;
        if (isfinite(o->own.predicted))
            a->bins[pseg_eval_bin((double)o->own.predicted)].n++;
        PSEG_TRY(add_to_groups(m, i, err));
    }
    qsort(all, a->n, sizeof *all, compare_ranked);
    for (uint32_t i = 0; i < a->n; i++)
        a->ranking[i] = all[i].entry;
out:
    pseg_free(all);
    return rc;
}

pseg_status pseg_eval_analysis_new(pseg_eval_analysis **out, const pseg_eval_plan *p,
                                   const pseg_eval_run *r, const pseg_eval_bootstrap_options *o,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_analysis *a = pseg_calloc(1, sizeof *a);
    maker m = {.plan = p, .run = r};
    pseg_eval_bootstrap_options options = *o;
    pseg_eval_interval *all = NULL;

    *out = NULL;
    if (!a)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an analysis");
    PSEG_REQUIRE(r->n_done > 0, "outcomes");
    PSEG_TRY(make_groups(&m, err));
    PSEG_TRY(look_over(a, &m, err));
    PSEG_TRY(make_sets(a, &m, err));
    all = pseg_calloc(n_statistics(&m), sizeof *all);
    a->groups = pseg_calloc(m.n_groups, sizeof *a->groups);
    if (!all || !a->groups)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an analysis");
    options.n_scratch = pseg_eval_set_scratch(m.sets[PSEG_EVAL_OWN]);
    PSEG_TRY(
        pseg_eval_bootstrap(all, n_statistics(&m), a->n_images, statistics, &m, &options, err));
    hand_out(a, &m, all);
    *out = a;
    a = NULL;
out:
    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++)
        pseg_eval_set_free(m.sets[w]);
    for (size_t g = 0; g < m.n_groups; g++)
        pseg_free(m.groups[g].parts);
    pseg_free(m.groups);
    pseg_free(m.category);
    pseg_free(m.kind);
    pseg_free(m.image);
    pseg_free(all);
    pseg_eval_analysis_free(a);
    return rc;
}

void pseg_eval_analysis_free(pseg_eval_analysis *a)
{
    if (!a)
        return;
    pseg_free(a->groups);
    pseg_free(a->ranking);
    pseg_free(a);
}
