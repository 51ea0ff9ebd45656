#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scheduler/service/validate.h"

#include <math.h>
#include <string.h>

#define NOW 1767323045000000

static uint8_t png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0, 0, 0, 13};

/* A spec that passes, for a test to spoil. */
struct good {
    Pseg__V1__JobSpec spec;
    Pseg__V1__Prompt prompt, *prompts[100];
    Pseg__V1__JobSpec__LabelsEntry label, *labels[20];
    Google__Protobuf__Timestamp deadline;
    Google__Protobuf__Duration ttl;
};

static Pseg__V1__JobSpec *good(struct good *g)
{
    pseg__v1__job_spec__init(&g->spec);
    pseg__v1__prompt__init(&g->prompt);
    pseg__v1__job_spec__labels_entry__init(&g->label);
    google__protobuf__timestamp__init(&g->deadline);
    google__protobuf__duration__init(&g->ttl);
    g->prompt.text = (char *)(uintptr_t) "a red circle";
    g->label.key = (char *)(uintptr_t) "batch";
    g->label.value = (char *)(uintptr_t) "7";
    for (int i = 0; i < 100; i++)
        g->prompts[i] = &g->prompt;
    for (int i = 0; i < 20; i++)
        g->labels[i] = &g->label;
    g->spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_CONTENT;
    g->spec.content.data = png;
    g->spec.content.len = sizeof png;
    g->spec.prompts = g->prompts;
    g->spec.n_prompts = 1;
    g->spec.labels = g->labels;
    g->spec.n_labels = 1;
    return &g->spec;
}

static void expect(const Pseg__V1__JobSpec *s, pseg_reason reason, const char *field)
{
    pseg_err e = PSEG_ERR_INIT;

    assert_int_equal(pseg_check_spec(s, "job", NOW, &e), pseg_reason_status(reason));
    assert_string_equal(pseg_reason_name(e.reason), pseg_reason_name(reason));
    assert_string_equal(e.field, field);
    assert_true(strlen(e.msg) > 10);
    assert_true(e.value[0] && e.limit[0]); /* for programs: docs/api.md promises both */
}

static void expect_facts(const Pseg__V1__JobSpec *s, const char *value, const char *limit)
{
    pseg_err e = PSEG_ERR_INIT;

    assert_int_not_equal(pseg_check_spec(s, "job", NOW, &e), PSEG_OK);
    assert_string_equal(e.value, value);
    assert_string_equal(e.limit, limit);
}

static void a_good_spec_passes(void **state)
{
    struct good g;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    Pseg__V1__JobSpec *s = good(&g);
    assert_int_equal(pseg_check_spec(s, "job", NOW, &e), PSEG_OK);
    s->n_prompts = 64;
    s->n_labels = 16;
    s->mask_threshold = 0.3f;
    g.deadline.seconds = NOW / 1000000 + 1;
    s->deadline = &g.deadline;
    g.ttl.seconds = 60;
    s->result_ttl = &g.ttl;
    g.prompt.text = (char *)(uintptr_t) "caf\xc3\xa9\tau lait";
    assert_int_equal(pseg_check_spec(s, "job", NOW, &e), PSEG_OK);
}

static void image_mistakes(void **state)
{
    struct good g;
    static uint8_t gif[] = "GIF89a......";

    (void)state;
    expect(NULL, PSEG_R_INVALID_ARGUMENT, "job");
    Pseg__V1__JobSpec *s = good(&g);
    s->image_case = PSEG__V1__JOB_SPEC__IMAGE__NOT_SET;
    expect(s, PSEG_R_IMAGE_MISSING, "job.content");
    s = good(&g);
    s->content.len = 0;
    expect(s, PSEG_R_IMAGE_MISSING, "job.content");
    s->content.len = PSEG_MAX_INLINE_IMAGE_BYTES + 1;
    expect(s, PSEG_R_IMAGE_TOO_LARGE, "job.content");
    s->content.data = gif;
    s->content.len = sizeof gif;
    expect(s, PSEG_R_IMAGE_FORMAT_UNSUPPORTED, "job.content");
    s->content.len = 1;
    expect(s, PSEG_R_IMAGE_FORMAT_UNSUPPORTED, "job.content");
    s->image_case = PSEG__V1__JOB_SPEC__IMAGE_SHA256;
    s->sha256 = (char *)(uintptr_t) "ABC";
    expect(s, PSEG_R_NAME_INVALID, "job.sha256");
}

static void prompt_mistakes(void **state)
{
    struct good g;
    char text[1100];

    (void)state;
    Pseg__V1__JobSpec *s = good(&g);
    s->n_prompts = 0;
    expect(s, PSEG_R_PROMPT_MISSING, "job.prompts");
    s->n_prompts = 65;
    expect(s, PSEG_R_TOO_MANY_PROMPTS, "job.prompts");
    expect_facts(s, "65", "64");
    s->n_prompts = 1;
    g.prompt.text = (char *)(uintptr_t) "";
    expect(s, PSEG_R_PROMPT_EMPTY, "job.prompts[0].text");
    g.prompt.text = (char *)(uintptr_t) " \t \xe3\x80\x80";
    expect(s, PSEG_R_PROMPT_EMPTY, "job.prompts[0].text");
    g.prompt.text = (char *)(uintptr_t) "a\x07 b";
    expect(s, PSEG_R_PROMPT_NOT_TEXT, "job.prompts[0].text");
    g.prompt.text = (char *)(uintptr_t) "a\xff";
    expect(s, PSEG_R_PROMPT_NOT_TEXT, "job.prompts[0].text");
    memset(text, 'x', sizeof text);
    text[1025] = '\0';
    g.prompt.text = text;
    expect(s, PSEG_R_PROMPT_TOO_LONG, "job.prompts[0].text");
    expect_facts(s, "1025", "1024");
    text[1024] = '\0';
    assert_int_equal(pseg_check_spec(s, "job", NOW, NULL), PSEG_OK);
}

static void other_mistakes(void **state)
{
    struct good g;

    (void)state;
    Pseg__V1__JobSpec *s = good(&g);
    static const float thresholds[] = {-0.1f, 1, 2, NAN, INFINITY};
    for (size_t i = 0; i < 5; i++) {
        s->mask_threshold = thresholds[i];
        expect(s, PSEG_R_THRESHOLD_OUT_OF_RANGE, "job.mask_threshold");
    }
    s = good(&g);
    s->model = (char *)(uintptr_t) "../x";
    expect(s, PSEG_R_NAME_INVALID, "job.model");
    expect_facts(s, "../x", "[A-Za-z0-9._-]{1,63}");
    s->model = (char *)(uintptr_t) "a\xff";
    expect_facts(s, "(not UTF-8)", "[A-Za-z0-9._-]{1,63}");
    s = good(&g);
    s->n_labels = 17;
    expect(s, PSEG_R_INVALID_ARGUMENT, "job.labels");
    s->n_labels = 1;
    g.label.key = (char *)(uintptr_t) "Bad Key";
    expect(s, PSEG_R_NAME_INVALID, "job.labels");
    s = good(&g);
    s->deadline = &g.deadline;
    g.deadline.seconds = NOW / 1000000 - 5;
    expect(s, PSEG_R_INVALID_ARGUMENT, "job.deadline");
    g.deadline.seconds = INT64_MAX / 2;
    expect(s, PSEG_R_INVALID_ARGUMENT, "job.deadline");
    s = good(&g);
    s->result_ttl = &g.ttl;
    g.ttl.seconds = 59;
    expect(s, PSEG_R_INVALID_ARGUMENT, "job.result_ttl");
    g.ttl.seconds = 8 * 86400;
    expect(s, PSEG_R_INVALID_ARGUMENT, "job.result_ttl");
}

static void names(void **state)
{
    const char *id;

    (void)state;
    assert_int_equal(pseg_check_job_name(&id, "jobs/0123456789abcdef0123456789abcdef", NULL),
                     PSEG_OK);
    assert_string_equal(id, "0123456789abcdef0123456789abcdef");
    static const char *const bad[] = {"",
                                      "jobs/",
                                      "jobs/xyz",
                                      "job/0123456789abcdef0123456789abcdef",
                                      "jobs/0123456789ABCDEF0123456789abcdef",
                                      "jobs/0123456789abcdef0123456789abcdef0"};
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(pseg_check_job_name(&id, bad[i], NULL), PSEG_EINVAL);
    assert_int_equal(pseg_check_request_id("", NULL), PSEG_OK);
    assert_int_equal(pseg_check_request_id("6f9619ff-8b86-d011-b42d-00cf4fc964ff", NULL), PSEG_OK);
    assert_int_equal(pseg_check_request_id("a b", NULL), PSEG_EINVAL);
    assert_int_equal(pseg_check_request_id(
                         "0123456789012345678901234567890123456789012345678901234567890123x", NULL),
                     PSEG_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_spec_passes),
        cmocka_unit_test(image_mistakes),
        cmocka_unit_test(prompt_mistakes),
        cmocka_unit_test(other_mistakes),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
