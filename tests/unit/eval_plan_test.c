/* Plans and their controls from a source made up here, and a report of a hundred thousand phrases.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "worker/eval/report.h"
#include "worker/eval/sweep.h"

#include <stdio.h>
#include <string.h>

typedef struct made_up {
    pseg_eval_source base;
    uint32_t n_phrases, n_categories; /* of an image; 0 categories: the data name none */
    uint32_t first;                   /* number of the first image, for its name */
    bool are_all_alike;
} made_up;

static pseg_status list(pseg_eval_listing *out, pseg_eval_source *s, uint32_t image,
                        pseg_arena *arena, pseg_err *err)
{
    const made_up *m = (const made_up *)s;
    char text[64];

    (void)err;
    snprintf(text, sizeof text, "image %u", image + m->first);
    *out = (pseg_eval_listing){.name = pseg_arena_strdup(arena, text),
                               .n = m->n_phrases,
                               .phrases =
                                   pseg_arena_calloc(arena, m->n_phrases, sizeof *out->phrases)};
    for (uint32_t k = 0; k < m->n_phrases; k++) {
        uint32_t number = m->are_all_alike ? 0 : image * 7 + k;
        snprintf(text, sizeof text, "thing %u of %u words", number, number % 9);
        out->phrases[k] = (pseg_eval_phrase){.text = pseg_arena_strdup(arena, text),
                                             .kind = "",
                                             .target = k / 2,
                                             .sentence = k % 2,
                                             .swap = UINT32_MAX};
        snprintf(text, sizeof text, "category %u", (image + k) % (m->n_categories + 1));
        out->phrases[k].category = m->n_categories ? pseg_arena_strdup(arena, text) : "";
    }
    return PSEG_OK;
}

static pseg_eval_plan *plan_of(made_up *m)
{
    pseg_eval_plan *p;
    pseg_err err = PSEG_ERR_INIT;

    m->base.list = list;
    if (pseg_eval_plan_new(&p, &m->base, 3, NULL, NULL, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(p->n, m->base.n_images * m->n_phrases);
    return p;
}

static void controls_are_of_others(void **state)
{
    (void)state;
    made_up m = {.base = {.n_images = 300}, .n_phrases = 5, .n_categories = 6};
    pseg_eval_plan *p = plan_of(&m);
    uint32_t *used = pseg_calloc(p->texts.n, sizeof *used);
    uint32_t *given = pseg_calloc(p->texts.n, sizeof *given);

    assert_int_equal(pseg_eval_plan_shuffle(p, 5, NULL), PSEG_OK);
    for (uint32_t i = 0; i < p->n; i++) {
        const pseg_eval_entry *e = &p->entries[i];
        assert_int_not_equal(e->shuffled, PSEG_EVAL_NONE);
        assert_int_not_equal(e->shuffled, e->phrase);
        for (uint32_t k = p->first[e->image]; k < p->first[e->image + 1]; k++)
            assert_true(p->entries[k].target != e->target || p->entries[k].phrase != e->shuffled);
        used[e->shuffled]++;
        given[e->phrase]++;
    }
    /* A permutation: each phrase is asked for as often as before. */
    for (uint32_t t = 0; t < p->texts.n; t++)
        assert_int_equal(used[t], given[t]);
    uint32_t first = p->entries[0].shuffled, differs = 0;
    assert_int_equal(pseg_eval_plan_shuffle(p, 5, NULL), PSEG_OK);
    assert_int_equal(p->entries[0].shuffled, first);
    assert_int_equal(pseg_eval_plan_shuffle(p, 6, NULL), PSEG_OK);
    for (uint32_t i = 0; i < p->n; i++)
        differs += p->entries[i].shuffled != first;
    assert_true(differs > p->n / 2);
    pseg_free(used);
    pseg_free(given);
    pseg_eval_plan_free(p);
}

static void no_control_where_there_is_none(void **state)
{
    (void)state;
    made_up alike = {.base = {.n_images = 40}, .n_phrases = 3, .are_all_alike = true};
    made_up alone = {.base = {.n_images = 1}, .n_phrases = 3};
    made_up *const all[] = {&alike, &alone};

    for (int k = 0; k < 2; k++) {
        pseg_eval_plan *p = plan_of(all[k]);
        assert_int_equal(pseg_eval_plan_shuffle(p, 1, NULL), PSEG_OK);
        for (uint32_t i = 0; i < p->n; i++)
            assert_int_equal(p->entries[i].shuffled, PSEG_EVAL_NONE);
        pseg_eval_plan_free(p);
    }
}

static void tuned_images_stand_apart(void **state)
{
    (void)state;
    made_up a = {.base = {.n_images = 10}, .n_phrases = 1};
    made_up b = {.base = {.n_images = 10}, .n_phrases = 1, .first = 10};
    made_up c = {.base = {.n_images = 3}, .n_phrases = 1, .first = 9};
    pseg_eval_plan *scored = plan_of(&a), *apart = plan_of(&b), *shared = plan_of(&c);
    pseg_err err = PSEG_ERR_INIT;

    assert_int_equal(pseg_eval_check_apart(apart, scored, &err), PSEG_OK);
    assert_int_equal(pseg_eval_check_apart(shared, scored, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "image 9"));
    pseg_eval_plan_free(scored);
    pseg_eval_plan_free(apart);
    pseg_eval_plan_free(shared);
}

static bool at_once(void *ud)
{
    (void)ud;
    return true;
}

static void reading_may_be_stopped(void **state)
{
    (void)state;
    made_up m = {.base = {.n_images = 1000000, .list = list}, .n_phrases = 1};
    pseg_eval_plan *p;
    pseg_err err = PSEG_ERR_INIT;

    assert_int_equal(pseg_eval_plan_new(&p, &m.base, 2, at_once, NULL, &err), PSEG_ECANCELLED);
    assert_null(p);
}

static void scenes_by_name(void **state)
{
    (void)state;
    uint64_t first;
    uint32_t n;
    int size;

    assert_true(pseg_eval_is_scenes("scenes:5-9", &first, &n, &size));
    assert_true(first == 5 && n == 5 && size == 0);
    assert_true(pseg_eval_is_scenes("scenes:0-0@448", &first, &n, &size));
    assert_true(n == 1 && size == 448);
    static const char *const bad[] = {"scenes:",     "scenes:3",    "scenes:9-5",
                                      "scenes:1-2x", "scenes:1-2@", "scenes:0-99999999",
                                      "photos"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(pseg_eval_is_scenes(bad[i], &first, &n, &size));
}

/* Its size is that of the charts and tables, whatever the number of phrases. */
static void a_large_report_is_small(void **state)
{
    (void)state;
    made_up m = {.base = {.n_images = 20000}, .n_phrases = 5, .n_categories = 900};
    pseg_eval_plan *p = plan_of(&m);
    pseg_eval_run run = {.n_done = p->n};
    pseg_eval_analysis *a;
    pseg_model_info info = {.name = "made up", .height = 224, .width = 224};
    uint64_t faults[PSEG_EVAL_N_FAULTS] = {0};
    pseg_eval_bootstrap_options o = {.replicates = 20, .level = 0.95, .threads = 2};
    pseg_buf html, json;

    run.outcomes = pseg_calloc(p->n, sizeof *run.outcomes);
    for (uint32_t i = 0; i < p->n; i++) {
        uint64_t area = 1 + i % 5000;
        run.outcomes[i] = (pseg_eval_outcome){
            .is_done = true,
            .width = 640,
            .height = 480,
            .truth = area,
            .own = {.area = area,
                    .both = area * (i % 11) / 10 > area ? area : area * (i % 11) / 10,
                    .predicted = (float)(i % 11) / 10,
                    .is_there = true}};
    }
    assert_int_equal(pseg_eval_analysis_new(&a, p, &run, &o, NULL), PSEG_OK);
    assert_int_equal(a->n, 100000);
    assert_int_equal(a->n_of[PSEG_EVAL_SHUFFLED], 0);
    pseg_eval_report r = {.plan = p,
                          .run = &run,
                          .analysis = a,
                          .model = &info,
                          .title = "large",
                          .model_path = NULL,
                          .device = "none",
                          .data = "made up",
                          .data_digest = "",
                          .command = "pseg eval",
                          .date = "",
                          .threshold = 0.5F,
                          .replicates = 20,
                          .level = 0.95,
                          .faults = faults};
    pseg_buf_init(&html, 4 << 20);
    pseg_buf_init(&json, 4 << 20);
    assert_int_equal(pseg_eval_report_html(&html, &r, NULL), PSEG_OK);
    assert_int_equal(pseg_eval_report_json(&json, &r, NULL), PSEG_OK);
    if (html.len > 600000 || json.len > 600000)
        fail_msg("%zu bytes of HTML, %zu of JSON", html.len, json.len);
    assert_null(strstr((char *)html.data, "nan"));
    assert_non_null(strstr((char *)html.data, "all others"));
    pseg_buf_deinit(&html);
    pseg_buf_deinit(&json);
    pseg_eval_analysis_free(a);
    pseg_free(run.outcomes);
    pseg_eval_plan_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(controls_are_of_others),
        cmocka_unit_test(no_control_where_there_is_none),
        cmocka_unit_test(tuned_images_stand_apart),
        cmocka_unit_test(reading_may_be_stopped),
        cmocka_unit_test(scenes_by_name),
        cmocka_unit_test(a_large_report_is_small),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
