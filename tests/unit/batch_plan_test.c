/* Manifests of every form become items; what is wrong in one line costs that line alone. */
#include "batch_support.h"

#include "client/batch/plan.h"

#include <sys/resource.h>

/* ASan keeps what was freed: less is planned under it, and more is allowed. */
#if defined(__SANITIZE_ADDRESS__)
enum { N_LINES = 20000, SPARE_MIB = 320 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { N_LINES = 20000, SPARE_MIB = 320 };
#else
enum { N_LINES = 200000, SPARE_MIB = 32 };
#endif
#else
enum { N_LINES = 200000, SPARE_MIB = 32 };
#endif

static batch_plan *plan_of(const char *const *names, size_t n, batch_form form, const char *prompt)
{
    pseg_err err = PSEG_ERR_INIT;
    batch_source s = {names, n, form, {&prompt, prompt ? 1 : 0}};
    batch_plan *p = NULL;

    if (batch_plan_make(folder, &s, &err) != PSEG_OK ||
        batch_plan_open(&p, folder, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return p;
}

static batch_plan *plan_of_text(const char *name, const char *text, const char *prompt)
{
    const char *path = write_text(name, text);

    return plan_of(&path, 1, BATCH_AUTO, prompt);
}

/* The item as one line of JSON with its keys in order. */
static void assert_item(const batch_plan *p, uint64_t seq, const char *expected)
{
    json_t *item = NULL;

    assert_int_equal(batch_plan_get(&item, p, seq, NULL), PSEG_OK);
    char *text = json_dumps(item, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(text, expected);
    free(text);
    json_decref(item);
}

static void assert_bad(const batch_plan *p, uint64_t seq, uint64_t line, const char *reason,
                       const char *words)
{
    json_t *item = NULL;

    assert_int_equal(batch_plan_get(&item, p, seq, NULL), PSEG_OK);
    assert_int_equal(json_integer_value(json_object_get(item, "line")), line);
    const char *is = json_string_value(json_object_get(item, "reason"));
    assert_non_null(is);
    assert_string_equal(is, reason);
    const char *message = json_string_value(json_object_get(item, "message"));
    if (!message || !strstr(message, words))
        fail_msg("\"%s\" is not in \"%s\"", words, message ? message : "(none)");
    json_decref(item);
}

static void assert_refused(const char *const *names, size_t n, const char *prompt,
                           pseg_reason reason, const char *words)
{
    pseg_err err = PSEG_ERR_INIT;
    batch_source s = {names, n, BATCH_AUTO, {&prompt, prompt ? 1 : 0}};
    batch_plan *p;

    assert_int_not_equal(batch_plan_make(folder, &s, &err), PSEG_OK);
    assert_string_equal(pseg_reason_name(err.reason), pseg_reason_name(reason));
    if (!strstr(err.msg, words))
        fail_msg("\"%s\" is not in \"%s\"", words, err.msg);
    assert_int_equal(batch_plan_open(&p, folder, NULL), PSEG_ENOTFOUND);
}

static void json_lines(void **state)
{
    (void)state;
    batch_plan *p = plan_of_text(
        "a.jsonl",
        "\xef\xbb\xbf{\"image\":\"a.jpg\",\"prompts\":[\"a dog\",\"a cat\"],\"id\":\"x\"}\r\n"
        "\n"
        "{\"image\":\"b.jpg\",\"prompt\":\"a dog\",\"id\":7,\"model\":\"m\",\"threshold\":0.25}\n"
        "{\"image\":\"c.jpg\",\"image_id\":12,\"other\":null}\n"
        "{\"image\":\"d.jpg\",\"samples\":[{\"sentences\":[\"one\",\"two\"]},{\"phrase\":\"three\"}"
        "]}",
        "the bird");
    assert_int_equal(batch_plan_items(p), 4);
    assert_item(p, 1,
                "{\"id\":\"x\",\"image\":\"a.jpg\",\"line\":1,\"prompts\":[\"a dog\",\"a cat\"]}");
    assert_item(
        p, 2,
        "{\"id\":\"7\",\"image\":\"b.jpg\",\"line\":3,\"model\":\"m\",\"prompts\":[\"a dog\"],"
        "\"threshold\":0.25}");
    assert_item(p, 3,
                "{\"image\":\"c.jpg\",\"image_id\":12,\"line\":4,\"prompts\":[\"the bird\"]}");
    assert_item(p, 4, "{\"image\":\"d.jpg\",\"line\":5,\"prompts\":[\"one\",\"two\",\"three\"]}");
    json_t *none;
    assert_int_equal(batch_plan_get(&none, p, 0, NULL), PSEG_EINVAL);
    assert_int_equal(batch_plan_get(&none, p, 5, NULL), PSEG_EINVAL);
    batch_plan_close(p);
}

static void bad_lines_stop_no_other(void **state)
{
    (void)state;
    batch_plan *p = plan_of_text("a.jsonl",
                                 "{\"image\":\n"
                                 "[1]\n"
                                 "{\"prompt\":\"a dog\"}\n"
                                 "{\"image\":\"a.jpg\"}\n"
                                 "{\"image\":\"a.jpg\",\"prompts\":[1]}\n"
                                 "{\"image\":\"a.jpg\",\"prompt\":\"a\",\"image_id\":\"x\"}\n"
                                 "{\"image\":\"a\\u0000b\",\"prompt\":\"a\"}\n"
                                 "{\"image\":\"\xff\",\"prompt\":\"a\"}\n"
                                 "{\"image\":\"good.jpg\",\"prompt\":\"a\"}\n",
                                 NULL);
    assert_int_equal(batch_plan_items(p), 9);
    assert_bad(p, 1, 1, "DATA_CORRUPT", "line 1 is no JSON");
    assert_bad(p, 2, 2, "DATA_CORRUPT", "no JSON object");
    assert_bad(p, 3, 3, "IMAGE_MISSING", "line 3 names no image");
    assert_bad(p, 4, 4, "PROMPT_MISSING", "--prompt");
    assert_bad(p, 5, 5, "PROMPT_NOT_TEXT", "line 5");
    assert_bad(p, 6, 6, "DATA_CORRUPT", "\"image_id\" is no number");
    assert_bad(p, 7, 7, "DATA_CORRUPT", "line 7");
    assert_bad(p, 8, 8, "DATA_CORRUPT", "line 8");
    assert_item(p, 9, "{\"image\":\"good.jpg\",\"line\":9,\"prompts\":[\"a\"]}");
    batch_plan_close(p);
}

static void a_line_without_end_costs_itself(void **state)
{
    size_t n = 3 * BATCH_LINE_BYTES;
    char *text = malloc(n);
    static const char before[] = "{\"image\":\"",
                      after[] = "\n{\"image\":\"b.jpg\",\"prompt\":\"a\"}\n";

    (void)state;
    assert_non_null(text);
    memset(text, 'x', n);
    memcpy(text, before, sizeof before - 1);
    memcpy(text + n - sizeof after + 1, after, sizeof after - 1);
    const char *path = write_bytes("a.jsonl", text, n);
    batch_plan *p = plan_of(&path, 1, BATCH_AUTO, NULL);
    assert_int_equal(batch_plan_items(p), 2);
    assert_bad(p, 1, 1, "REQUEST_TOO_LARGE", "1048576 bytes");
    assert_item(p, 2, "{\"image\":\"b.jpg\",\"line\":2,\"prompts\":[\"a\"]}");
    batch_plan_close(p);
    free(text);
}

static void tables(void **state)
{
    (void)state;
    batch_plan *p = plan_of_text("a.csv",
                                 "image,prompt,prompt,id,image_id,threshold,note\n"
                                 "a.jpg,a dog,\"the \"\"big\"\", red one\",x,5,0.25,hello\n"
                                 "\"b, c.jpg\",a cat\n"
                                 "d.jpg,\"not closed\n"
                                 ",a dog\n"
                                 "e.jpg,a,b,c,1,0.5,n,too many\n"
                                 "f.jpg,a,,,12x\n"
                                 "g.jpg,a,,,,1.5\n"
                                 "h.jpg,\xff\n"
                                 "i.jpg\n",
                                 NULL);
    assert_int_equal(batch_plan_items(p), 9);
    assert_item(
        p, 1,
        "{\"id\":\"x\",\"image\":\"a.jpg\",\"image_id\":5,\"line\":2,\"prompts\":[\"a dog\","
        "\"the \\\"big\\\", red one\"],\"threshold\":0.25}");
    assert_item(p, 2, "{\"image\":\"b, c.jpg\",\"line\":3,\"prompts\":[\"a cat\"]}");
    assert_bad(p, 3, 4, "DATA_CORRUPT", "a quote is not closed");
    assert_bad(p, 4, 5, "IMAGE_MISSING", "line 5");
    assert_bad(p, 5, 6, "DATA_CORRUPT", "more fields");
    assert_bad(p, 6, 7, "DATA_CORRUPT", "image_id");
    assert_bad(p, 7, 8, "DATA_CORRUPT", "threshold");
    assert_bad(p, 8, 9, "DATA_CORRUPT", "UTF-8");
    assert_bad(p, 9, 10, "PROMPT_MISSING", "--prompt");
    batch_plan_close(p);

    p = plan_of_text("a.tsv", "id\timage\n1\t\"a\".jpg\n", "a dog");
    assert_int_equal(batch_plan_items(p), 1);
    assert_item(p, 1,
                "{\"id\":\"1\",\"image\":\"\\\"a\\\".jpg\",\"line\":2,\"prompts\":[\"a dog\"]}");
    batch_plan_close(p);
}

static void coco(void **state)
{
    (void)state;
    batch_plan *p = plan_of_text(
        "a.json",
        "{\"info\": {\"images\": [1, \"]\"], \"a\\\"b\": null}, \"n\": 1.5e3, \"t\": true,\n"
        " \"images\": [{\"id\": 9, \"file_name\": \"a{]\\\"}.jpg\", \"height\": 4},\n"
        "  {\"file_name\": \"b.jpg\"}, 17, {\"id\": 10, \"file_name\": \"c.jpg\", \"phrases\": "
        "[\"own\"]}],\n"
        " \"annotations\": [{\"id\": 1, \"segmentation\": [[1, 2]]}],\n"
        " \"categories\": [{\"id\": 3, \"name\": \"dog\"}, {\"id\": 90, \"name\": \"cat\"}]}\n",
        NULL);
    assert_int_equal(batch_plan_items(p), 4);
    assert_item(p, 1,
                "{\"categories\":[3,90],\"image\":\"a{]\\\"}.jpg\",\"image_id\":9,\"line\":1,"
                "\"prompts\":[\"dog\",\"cat\"]}");
    assert_bad(p, 2, 2, "DATA_CORRUPT", "file_name and id");
    assert_bad(p, 3, 3, "DATA_CORRUPT", "image 3");
    assert_item(p, 4, "{\"image\":\"c.jpg\",\"image_id\":10,\"line\":4,\"prompts\":[\"own\"]}");
    batch_plan_close(p);

    p = plan_of_text("b.json", "{\"images\": [{\"id\": 1, \"file_name\": \"a.jpg\"}]}", "a dog");
    assert_item(p, 1, "{\"image\":\"a.jpg\",\"image_id\":1,\"line\":1,\"prompts\":[\"a dog\"]}");
    batch_plan_close(p);
}

static void more_categories_than_a_job_takes(void **state)
{
    char text[16384] = "{\"images\":[{\"id\":1,\"file_name\":\"a.jpg\"}],\"categories\":[";
    size_t n = strlen(text);
    json_t *item;

    (void)state;
    for (int i = 1; i <= 80; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s{\"id\":%d,\"name\":\"c%d\"}",
                              i > 1 ? "," : "", 100 + i, i);
    snprintf(text + n, sizeof text - n, "]}");
    batch_plan *p = plan_of_text("a.json", text, NULL);
    assert_int_equal(batch_plan_items(p), 2);
    for (uint64_t seq = 1; seq <= 2; seq++) {
        assert_int_equal(batch_plan_get(&item, p, seq, NULL), PSEG_OK);
        assert_int_equal(json_array_size(json_object_get(item, "prompts")), seq == 1 ? 64 : 16);
        assert_int_equal(json_array_size(json_object_get(item, "categories")), seq == 1 ? 64 : 16);
        const json_t *first = json_array_get(json_object_get(item, "categories"), 0);
        assert_int_equal(json_integer_value(first), seq == 1 ? 101 : 165);
        json_decref(item);
    }
    batch_plan_close(p);
}

static void images_by_name(void **state)
{
    const char *root = in_folder("in");
    const char *paths[5] = {root};
    char seen[3];
    json_t *item;

    (void)state;
    mkdir(root, 0777);
    mkdir(in_folder("in/deep"), 0777);
    mkdir(in_folder("in/.hidden"), 0777);
    static const char *const names[] = {"in/a.JPG", "in/b.png", "in/notes.txt", "in/deep/c.webp",
                                        "in/.hidden/d.png"};
    for (size_t i = 0; i < 5; i++)
        write_text(names[i], "x");
    assert_int_equal(symlink("..", in_folder("in/deep/up")), 0);

    batch_plan *p = plan_of(paths, 1, BATCH_AUTO, "a dog");
    assert_int_equal(batch_plan_items(p), 3);
    memset(seen, 0, sizeof seen);
    for (uint64_t i = 1; i <= 3; i++) {
        assert_int_equal(batch_plan_get(&item, p, i, NULL), PSEG_OK);
        const char *path = json_string_value(json_object_get(item, "image"));
        char letter = strrchr(path, '.')[-1];
        assert_in_range(letter, 'a', 'c');
        seen[letter - 'a']++;
        json_decref(item);
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(seen[i], 1);
    batch_plan_close(p);

    paths[0] = in_folder("*/*.png");
    p = plan_of(paths, 1, BATCH_AUTO, "a dog");
    assert_int_equal(batch_plan_items(p), 1);
    batch_plan_close(p);

    paths[0] = in_folder("in/a.JPG");
    paths[1] =
        in_folder("in/notes.txt"); /* named outright: it is for the server to say what it is */
    paths[2] = in_folder("in/missing.png");
    p = plan_of(paths, 3, BATCH_AUTO, "a dog");
    assert_int_equal(batch_plan_items(p), 3);
    batch_plan_close(p);
}

static void what_is_no_manifest_is_refused(void **state)
{
    const char *path;

    (void)state;
    assert_refused(NULL, 0, "a", PSEG_R_CONFIG_INVALID, "name a manifest");
    path = in_folder("missing.jsonl");
    assert_refused(&path, 1, "a", PSEG_R_FILE_NOT_FOUND, "missing.jsonl");
    path = in_folder("missing.png");
    assert_refused(&path, 1, "a", PSEG_R_FILE_NOT_FOUND, "missing.png");
    path = in_folder("*.png");
    assert_refused(&path, 1, "a", PSEG_R_FILE_NOT_FOUND, "no file fits");
    path = folder;
    assert_refused(&path, 1, NULL, PSEG_R_CONFIG_INVALID, "--prompt");
    assert_refused(&path, 1, "a", PSEG_R_CONFIG_INVALID, "nothing to do");
    assert_refused(&path, 1, "\xff", PSEG_R_PROMPT_NOT_TEXT, "--prompt");
    path = write_text("empty.jsonl", "\n\n");
    assert_refused(&path, 1, "a", PSEG_R_CONFIG_INVALID, "nothing to do");
    path = write_text("a.csv", "picture,prompt\na,b\n");
    assert_refused(&path, 1, "a", PSEG_R_CONFIG_INVALID, "\"image\"");
    static const char *const broken[] = {"",
                                         "[]",
                                         "{\"images\": 1}",
                                         "{\"images\": [{\"id\": 1",
                                         "{\"images\": [\"a\" \"b\"]}",
                                         "{\"images\" []}",
                                         "{images: []}",
                                         "{\"images\": [1],"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        path = write_text("a.json", broken[i]);
        assert_refused(&path, 1, "a", PSEG_R_DATA_CORRUPT, "is no COCO file");
    }
    const char *two[2] = {write_text("a.jsonl", "{}\n"), in_folder("b.jsonl")};
    assert_refused(two, 2, "a", PSEG_R_CONFIG_INVALID, "b.jsonl");
}

static void a_plan_that_was_cut_is_told(void **state)
{
    batch_plan *p = plan_of_text("a.jsonl", "{\"image\":\"a\"}\n{\"image\":\"b\"}\n", "x");
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    batch_plan_close(p);
    assert_int_equal(truncate(in_folder("plan.jsonl"), 20), 0);
    assert_int_equal(batch_plan_open(&p, folder, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "not of one batch"));
    assert_int_equal(truncate(in_folder("plan.index"), 9), 0);
    assert_int_equal(batch_plan_open(&p, folder, &err), PSEG_ECORRUPT);
    batch_plan_remove(folder);
    assert_int_equal(batch_plan_open(&p, folder, &err), PSEG_ENOTFOUND);
}

/* Many lines of every kind through the planner and back: what the process holds at its
 * peak does not follow. */
static void memory_does_not_grow(void **state)
{
    const char *path = in_folder("many.jsonl");
    FILE *f = fopen(path, "w");
    struct rusage before, after;
    uint64_t bad = 0;
    json_t *item;

    (void)state;
    assert_non_null(f);
    for (int i = 0; i < N_LINES; i++)
        fprintf(f,
                i % 1000 == 7 ? "{\"image\": %d\n"
                              : "{\"image\":\"images/%09d.jpg\",\"prompt\":\"a dog\"}\n",
                i);
    assert_int_equal(fclose(f), 0);
    batch_plan_close(plan_of_text("warm.jsonl", "{\"image\":\"a\"}\n", "x"));
    getrusage(RUSAGE_SELF, &before);
    batch_plan *p = plan_of(&path, 1, BATCH_AUTO, NULL);
    assert_int_equal(batch_plan_items(p), N_LINES);
    for (uint64_t i = 1; i <= N_LINES; i++) {
        assert_int_equal(batch_plan_get(&item, p, i, NULL), PSEG_OK);
        bad += json_object_get(item, "reason") != NULL;
        json_decref(item);
    }
    batch_plan_close(p);
    getrusage(RUSAGE_SELF, &after);
    assert_int_equal(bad, N_LINES / 1000);
    long grown_kib = after.ru_maxrss - before.ru_maxrss;
    if (grown_kib > SPARE_MIB * 1024)
        fail_msg("the peak grew by %ld KiB", grown_kib);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_folder, drop_folder)
    const struct CMUnitTest tests[] = {
        TEST(json_lines),
        TEST(bad_lines_stop_no_other),
        TEST(a_line_without_end_costs_itself),
        TEST(tables),
        TEST(coco),
        TEST(more_categories_than_a_job_takes),
        TEST(images_by_name),
        TEST(what_is_no_manifest_is_refused),
        TEST(a_plan_that_was_cut_is_told),
        TEST(memory_does_not_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
