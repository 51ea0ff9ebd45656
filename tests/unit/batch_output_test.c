/* Results and state of a batch: what a run that was cut off anywhere leaves, the next one goes on
 * from, and nothing stands there twice. */
#include "batch_support.h"

#include "client/batch/output.h"
#include "client/batch/progress.h"
#include "client/batch/state.h"
#include "client/batch/told.h"

static json_t *item_of(int line)
{
    json_t *j = json_pack("{s:i, s:s, s:s, s:[s]}", "line", line, "image", "a.jpg", "id", "x",
                          "prompts", "a dog");
    assert_non_null(j);
    return j;
}

/* Writes the result of one job whose mask is `data`. */
static void put(batch_output *o, uint64_t seq, json_t *item, const char *data)
{
    pseg_err err = PSEG_ERR_INIT;
    Pseg__V1__Job job = PSEG__V1__JOB__INIT;
    Pseg__V1__PromptResult result = PSEG__V1__PROMPT_RESULT__INIT, *results[] = {&result};
    Pseg__V1__BoundingBox box = PSEG__V1__BOUNDING_BOX__INIT;
    Pseg__V1__Mask mask = PSEG__V1__MASK__INIT, *masks[] = {&mask};
    char name[] = "jobs/1";

    job.name = name;
    job.image_width = 4;
    job.image_height = 3;
    job.results = results;
    job.n_results = 1;
    box = (Pseg__V1__BoundingBox){.base = box.base, .x = 1, .y = 2, .width = 3, .height = 1};
    result.box = &box;
    result.predicted_iou = 0.5f;
    result.area_px = 3;
    mask.width = 4;
    mask.height = 3;
    mask.data.data = (uint8_t *)(uintptr_t)data;
    mask.data.len = strlen(data);
    if (batch_output_result(o, seq, item, &job, masks, 1, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    json_decref(item);
}

static batch_output *open_at(batch_format format, const batch_position *at)
{
    pseg_err err = PSEG_ERR_INIT;
    batch_output *o = NULL;

    if (batch_output_open(&o, folder, format, at, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return o;
}

#define LINE1                                                                                   \
    "{\"line\":1,\"id\":\"x\",\"image\":\"a.jpg\",\"job\":\"jobs/1\",\"width\":4,\"height\":3," \
    "\"results\":[{\"prompt\":\"a dog\",\"score\":0.5,\"area\":3,\"bbox\":[1,2,3,1],"           \
    "\"segmentation\":{\"size\":[3,4],\"counts\":\"ab\"}}]}\n"
#define LINE2                                                                                   \
    "{\"line\":2,\"id\":\"x\",\"image\":\"a.jpg\",\"job\":\"jobs/1\",\"width\":4,\"height\":3," \
    "\"results\":[{\"prompt\":\"a dog\",\"score\":0.5,\"area\":3,\"bbox\":[1,2,3,1],"           \
    "\"segmentation\":{\"size\":[3,4],\"counts\":\"cd\"}}]}\n"

static void lines_go_on_where_they_were_kept(void **state)
{
    batch_position at = {0, 0}, kept;
    pseg_err err = PSEG_ERR_INIT;
    json_t *bad = item_of(5);

    (void)state;
    batch_output *o = open_at(BATCH_RLE, &at);
    put(o, 1, item_of(1), "ab");
    assert_int_equal(
        batch_output_failure(o, bad, "FAILED", "IMAGE_UNDECODABLE", "it is \xff", NULL), PSEG_OK);
    assert_int_equal(batch_output_sync(&kept, o, NULL), PSEG_OK);
    assert_int_equal(kept.results_bytes, sizeof LINE1 - 1);
    put(o, 2, item_of(2), "cd"); /* is told again, for its token was not kept */
    assert_int_equal(batch_output_failure(o, bad, "FAILED", "X", "y", NULL), PSEG_OK);
    assert_int_equal(batch_output_sync(&at, o, NULL), PSEG_OK);
    batch_output_close(o);

    o = open_at(BATCH_RLE, &kept);
    put(o, 2, item_of(2), "cd");
    assert_int_equal(batch_output_finish(o, NULL), PSEG_OK);
    batch_output_close(o);
    assert_string_equal(read_text(in_folder("results.jsonl")), LINE1 LINE2);
    assert_string_equal(read_text(in_folder("failures.jsonl")),
                        "{\"line\":5,\"id\":\"x\",\"image\":\"a.jpg\",\"state\":\"FAILED\","
                        "\"reason\":\"IMAGE_UNDECODABLE\",\"message\":\"it is ?\"}\n");

    kept.results_bytes = 100000;
    assert_int_equal(batch_output_open(&o, folder, BATCH_RLE, &kept, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "100000"));
    json_decref(bad);
}

static json_t *coco_results(size_t n)
{
    json_t *j = json_load_file(in_folder("results.json"), 0, NULL);

    assert_non_null(j);
    assert_int_equal(json_array_size(j), n);
    return j;
}

static void coco_is_one_document_however_it_was_cut(void **state)
{
    batch_position at = {0, 0}, kept;
    json_t *with_ids = json_pack("{s:i, s:I, s:[s], s:[i]}", "line", 2, "image_id",
                                 (json_int_t)397133, "prompts", "dog", "categories", 18);

    (void)state;
    batch_output *o = open_at(BATCH_COCO_RESULTS, &at);
    put(o, 1, item_of(1), "ab");
    assert_int_equal(batch_output_sync(&kept, o, NULL), PSEG_OK);
    put(o, 2, json_incref(with_ids), "cd");
    assert_int_equal(batch_output_finish(o, NULL), PSEG_OK);
    batch_output_close(o);
    assert_false(pseg_file_exists(in_folder("results.json.part")));
    json_decref(coco_results(2));

    /* Cut off behind the last name and before the state was kept: the end is done again. */
    o = open_at(BATCH_COCO_RESULTS, &kept);
    assert_true(pseg_file_exists(in_folder("results.json.part")));
    assert_false(pseg_file_exists(in_folder("results.json")));
    put(o, 2, with_ids, "cd");
    assert_int_equal(batch_output_finish(o, NULL), PSEG_OK);
    batch_output_close(o);
    json_t *j = coco_results(2);
    char *text = json_dumps(j, JSON_COMPACT);
    assert_string_equal(
        text,
        "[{\"image_id\":1,\"category_id\":1,\"segmentation\":{\"size\":[3,4],\"counts\":\"ab\"},"
        "\"bbox\":[1,2,3,1],\"area\":3,\"score\":0.5},"
        "{\"image_id\":397133,\"category_id\":18,\"segmentation\":{\"size\":[3,4],\"counts\":"
        "\"cd\"},\"bbox\":[1,2,3,1],\"area\":3,\"score\":0.5}]");
    free(text);
    json_decref(j);
}

static void coco_without_a_result_is_an_empty_array(void **state)
{
    batch_position at = {0, 0};

    (void)state;
    batch_output *o = open_at(BATCH_COCO_RESULTS, &at);
    assert_int_equal(batch_output_finish(o, NULL), PSEG_OK);
    batch_output_close(o);
    json_decref(coco_results(0));
}

static void pictures_lie_by_the_thousand(void **state)
{
    batch_position at = {0, 0};

    (void)state;
    batch_output *o = open_at(BATCH_PNG, &at);
    put(o, 999, item_of(1), "first");
    put(o, 1234567, item_of(2), "second");
    put(o, 1234567, item_of(2), "again");
    assert_int_equal(batch_output_sync(&at, o, NULL), PSEG_OK);
    batch_output_close(o);
    assert_string_equal(read_text(in_folder("masks/000/000999-0.png")), "first");
    assert_string_equal(read_text(in_folder("masks/1234/1234567-0.png")), "again");
    assert_non_null(
        strstr(read_text(in_folder("results.jsonl")), "\"mask\":\"masks/000/000999-0.png\"}]}\n"));
}

static void a_result_that_does_not_fit_is_told(void **state)
{
    batch_position at = {0, 0};
    Pseg__V1__Job job = PSEG__V1__JOB__INIT;
    json_t *item = item_of(1);

    (void)state;
    batch_output *o = open_at(BATCH_RLE, &at);
    assert_int_equal(batch_output_result(o, 1, item, &job, NULL, 0, NULL), PSEG_EINTERNAL);
    batch_output_close(o);
    json_decref(item);
}

static void the_state_comes_back(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    batch_state *s = NULL, *second = NULL;
    json_t *facts = json_pack("{s:s, s:i}", "--format", "jsonl", "items", 3);

    (void)state;
    assert_int_equal(batch_state_open(&s, folder, &err), PSEG_OK);
    assert_false(s->exists);
    assert_int_equal(batch_state_open(&second, folder, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "another `pseg batch` is at work"));
    s->of = json_deep_copy(facts);
    free(s->batch);
    s->batch = strdup("batches/7");
    s->items = 3;
    s->at = (batch_position){10, 20};
    batch_state_count_failure(s, "PROMPT_EMPTY");
    batch_state_count_failure(s, "PROMPT_EMPTY");
    assert_int_equal(batch_state_set_token(s, "t\"1", NULL), PSEG_OK);
    assert_int_equal(batch_state_save(s, &err), PSEG_OK);
    batch_state_close(s);

    assert_int_equal(batch_state_open(&s, folder, &err), PSEG_OK);
    assert_true(s->exists);
    assert_false(s->is_finished);
    assert_string_equal(s->batch, "batches/7");
    assert_string_equal(s->token, "t\"1");
    assert_int_equal(s->at.results_bytes, 10);
    assert_int_equal(s->at.failures_bytes, 20);
    assert_int_equal(s->failed, 2);
    assert_int_equal(json_integer_value(json_object_get(s->reasons, "PROMPT_EMPTY")), 2);
    assert_int_equal(batch_state_check(s, facts, &err), PSEG_OK);
    json_object_set_new(facts, "--format", json_string("coco"));
    assert_int_equal(batch_state_check(s, facts, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "another --format: \"jsonl\", now \"coco\""));
    batch_state_close(s);
    json_decref(facts);

    write_text(".pseg-batch/state.json", "{\"version\":1");
    assert_int_equal(batch_state_open(&s, folder, &err), PSEG_ECORRUPT);
    write_text(".pseg-batch/state.json",
               "{\"version\":2,\"batch\":\"b\",\"of\":{},\"reasons\":{}}");
    assert_int_equal(batch_state_open(&s, folder, &err), PSEG_ECORRUPT);
}

static void what_was_told_is_known_again(void **state)
{
    enum { N = 10000 };
    batch_told *t = NULL;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    assert_int_equal(batch_told_open(&t, folder, N, 0, &err), PSEG_OK);
    for (uint64_t seq = N; seq > 5; seq--) {
        assert_false(batch_told_has(t, seq));
        assert_int_equal(batch_told_add(t, seq, &err), PSEG_OK);
        assert_true(batch_told_has(t, seq));
    }
    assert_int_equal(batch_told_sync(t, &err), PSEG_OK);
    batch_told_close(t);

    /* What the state does not count is forgotten. */
    assert_int_equal(batch_told_open(&t, folder, N, 9000, &err), PSEG_OK);
    for (uint64_t seq = 1; seq <= N; seq++)
        assert_int_equal(batch_told_has(t, seq), seq > N - 9000);
    batch_told_close(t);
    assert_int_equal(batch_told_open(&t, folder, N, 9001, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "has 9000 numbers, but 9001 results"));

    write_text("told", "\xff\xff\xff\xff");
    err = (pseg_err)PSEG_ERR_INIT;
    assert_int_equal(batch_told_open(&t, folder, N, 1, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "names item 4294967295 of 10000"));
}

static void reasons_are_bounded(void **state)
{
    batch_state *s = NULL;
    char name[16];

    (void)state;
    assert_int_equal(batch_state_open(&s, folder, NULL), PSEG_OK);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "R%d", i);
        batch_state_count_failure(s, name);
    }
    assert_int_equal(s->failed, 1000);
    assert_int_equal(json_object_size(s->reasons), 257);
    assert_int_equal(json_integer_value(json_object_get(s->reasons, "OTHER")), 1000 - 256);
    batch_state_close(s);
}

static void assert_progress(batch_progress *p, int64_t ms, uint64_t done, uint64_t failed,
                            const char *trouble, const char *expected)
{
    char text[300];

    batch_progress_text(text, sizeof text, p, ms, done, failed, trouble);
    assert_string_equal(text, expected);
}

static void progress_tells_rate_and_rest(void **state)
{
    batch_progress p = {.items = 1234567};
    char small[10];

    (void)state;
    assert_progress(&p, 1000, 0, 0, "", "0 of 1,234,567 (0.0 %)");
    assert_progress(&p, 2000, 50, 0, "", "50 of 1,234,567 (0.0 %), 50.0/s, 7 h left");
    assert_progress(&p, 3000, 200000, 1001, "no server",
                    "200,000 of 1,234,567 (16.2 %), 100000/s, 10 s left, 1,001 failed; trying "
                    "again: no server");
    /* What was long ago does not count: it stands still. */
    for (int64_t ms = 4000; ms < 40000; ms += 500)
        batch_progress_text(small, sizeof small, &p, ms, 200000, 0, "x");
    assert_progress(&p, 40000, 200000, 0, "", "200,000 of 1,234,567 (16.2 %)");
    /* Gone on with: what an earlier run has done is no rate of this one. */
    p = (batch_progress){.items = 100};
    assert_progress(&p, 0, 90, 0, "", "90 of 100 (90.0 %)");
    assert_progress(&p, 1000, 95, 0, "", "95 of 100 (95.0 %), 5.0/s, 1 s left");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_folder, drop_folder)
    const struct CMUnitTest tests[] = {
        TEST(lines_go_on_where_they_were_kept),
        TEST(coco_is_one_document_however_it_was_cut),
        TEST(coco_without_a_result_is_an_empty_array),
        TEST(pictures_lie_by_the_thousand),
        TEST(a_result_that_does_not_fit_is_told),
        TEST(the_state_comes_back),
        TEST(what_was_told_is_known_again),
        TEST(reasons_are_bounded),
        cmocka_unit_test(progress_tells_rate_and_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
