/* The tokenizer against Hugging Face's: over 100,000 strings with all of Unicode 14 in them, made
 * here and in tokenizer/make.py by the same formula, compared by hashes; then what it must refuse.
 *
 *     test_tokenizer own       with tokenizer/merges.txt
 *     test_tokenizer clip      with CLIP's merges from ../shared/data; exit 77 if they are missing
 */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/utf8.h"
#include "worker/text/tokenizer.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER PSEG_TEST_SOURCE_DIR "/tests/unit/tokenizer"
#define CLIP   PSEG_TEST_DATA_DIR "/clip_bpe"
#define EACH   8
#define BLOCK  1000
#define MAX    77
#define RANDOM 40000
#define WORDS  30000

typedef struct range {
    uint32_t lo, hi;
} range;

typedef struct text {
    char *s;
    size_t n;
} text;

static struct {
    char *data; /* data.txt, NUL-terminated lines */
    size_t n_data;
    range ranges[1024];
    text snippets[256];
    uint32_t *points;
    size_t n_ranges, n_snippets, n_points;
} all;

/* ---- the strings, as tokenizer/make.py makes them ---- */

static uint64_t next(uint64_t *x, uint64_t n)
{
    uint64_t z = *x += 0x9E3779B97F4A7C15u;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) % n;
}

static void put(text *t, const char *s, size_t n)
{
    memcpy(t->s + t->n, s, n);
    t->n += n;
}

static void put_point(text *t, uint32_t cp)
{
    t->n += pseg_utf8_encode(t->s + t->n, cp);
}

static size_t n_sweep(void)
{
    return (all.n_points + EACH - 1) / EACH;
}

static void make_string(text *t, size_t i)
{
    static const char *const between[] = {"", "", "", " ", "a", "1", "'", "\xCC\x81"};
    uint64_t x = i;

    t->n = 0;
    if (i < n_sweep()) {
        for (size_t k = i * EACH; k < (i + 1) * EACH && k < all.n_points; k++) {
            const char *s = between[next(&x, 8)];
            put_point(t, all.points[k]);
            put(t, s, strlen(s));
        }
    } else if (i < n_sweep() + RANDOM) {
        for (uint64_t k = 1 + next(&x, 24); k > 0; k--) {
            range r = all.ranges[next(&x, all.n_ranges)];
            put_point(t, r.lo + (uint32_t)next(&x, r.hi - r.lo + 1));
            if (next(&x, 4) == 0)
                put(t, " ", 1);
        }
    } else {
        for (uint64_t k = next(&x, 40); k > 0; k--) {
            text s = all.snippets[next(&x, all.n_snippets)];
            put(t, s.s, s.n);
        }
    }
}

/* ---- data.txt ---- */

static size_t unhex(char *out, const char *hex)
{
    size_t n = 0;

    for (; hex[2 * n] && hex[2 * n] != ' ' && hex[2 * n] != '\n'; n++) {
        char pair[3] = {hex[2 * n], hex[2 * n + 1], '\0'};
        out[n] = (char)strtoul(pair, NULL, 16);
    }
    return n;
}

/* The line behind `at`, NULL at the end. */
static const char *line_after(const char *at)
{
    const char *end = strchr(at, '\n');

    return end && end[1] ? end + 1 : NULL;
}

static const char *match(const char *line, const char *word)
{
    size_t n = strlen(word);

    return strncmp(line, word, n) == 0 && line[n] == ' ' ? line + n + 1 : NULL;
}

static int setup(void **state)
{
    uint8_t *data;
    (void)state;

    if (pseg_file_read(&data, &all.n_data, FOLDER "/data.txt", 1 << 24, NULL) != PSEG_OK)
        return -1;
    all.data = (char *)data;
    all.points = pseg_calloc(0x110000, sizeof *all.points);
    for (const char *line = all.data, *p; all.points && line; line = line_after(line)) {
        if ((p = match(line, "range")) && all.n_ranges < 1024) {
            char *end;
            range r = {(uint32_t)strtoul(p, &end, 16), 0};
            r.hi = (uint32_t)strtoul(end, NULL, 16);
            all.ranges[all.n_ranges++] = r;
            for (uint32_t cp = r.lo; cp <= r.hi && all.n_points < 0x110000; cp++)
                all.points[all.n_points++] = cp;
        } else if ((p = match(line, "snippet")) && all.n_snippets < 256) {
            text *t = &all.snippets[all.n_snippets++];
            t->s = pseg_malloc(512);
            t->n = t->s ? unhex(t->s, p) : 0;
        }
    }
    return all.points && all.n_snippets ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < all.n_snippets; i++)
        pseg_free(all.snippets[i].s);
    pseg_free(all.points);
    pseg_free(all.data);
    return 0;
}

/* ---- the comparison ---- */

static uint64_t feed(uint64_t h, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        h = (h ^ (v >> (8 * i) & 255)) * 0x100000001B3u;
    return h;
}

static size_t encode(int32_t ids[MAX], const pseg_tokenizer *t, const char *s, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    size_t k;

    if (pseg_tokenizer_encode(ids, MAX, &k, NULL, t, s, n, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return k;
}

/* Strings with their ids come first, so that a fault shows where it is. */
static void check_samples(const pseg_tokenizer *t, const char *name)
{
    char buffer[8192], made[8192];
    size_t seen = 0;

    for (const char *line = all.data, *p; line; line = line_after(line)) {
        int32_t ids[MAX];
        char *end;
        text again = {made, 0};
        if (!(p = match(line, name)))
            continue;
        size_t i = strtoul(p, &end, 10), n = unhex(buffer, end + 1);
        make_string(&again, i);
        assert_int_equal(again.n, n);
        assert_memory_equal(made, buffer, n);
        size_t k = encode(ids, t, buffer, n), at = 0;
        end += 1 + 2 * n;
        for (; *end == ' '; at++) {
            long want = strtol(end, &end, 10);
            if (at >= k || ids[at] != want)
                fail_msg("string %zu (%.60s...): id %zu of %zu is %d, expected %ld", i, buffer, at,
                         k, at < k ? ids[at] : -1, want);
        }
        assert_int_equal(at, k);
        seen++;
    }
    assert_true(seen > 200);
}

static void check_blocks(const pseg_tokenizer *t, const char *name)
{
    static char buffer[8192];
    size_t seen = 0, total = n_sweep() + RANDOM + WORDS;
    char key[32];

    snprintf(key, sizeof key, "%s-block", name);
    for (const char *line = all.data, *p; line; line = line_after(line)) {
        uint64_t h = 0xCBF29CE484222325u;
        char *end;
        if (!(p = match(line, key)))
            continue;
        size_t first = strtoul(p, &end, 10);
        for (size_t i = first; i < first + BLOCK && i < total; i++) {
            text s = {buffer, 0};
            int32_t ids[MAX];
            make_string(&s, i);
            size_t n = encode(ids, t, s.s, s.n);
            h = feed(h, (uint32_t)n);
            for (size_t k = 0; k < n; k++)
                h = feed(h, (uint32_t)ids[k]);
            seen++;
        }
        if (h != strtoull(end, NULL, 16))
            fail_msg("strings %zu..%zu: other ids than Hugging Face's", first, first + BLOCK - 1);
    }
    assert_int_equal(seen, total);
    assert_true(total >= 100000);
    assert_true(all.n_points > 280000);
    print_message("%s: %zu strings with %zu code points agree\n", name, seen, all.n_points);
}

static pseg_tokenizer *open_folder(const char *folder)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_tokenizer *t;

    if (pseg_tokenizer_open(&t, folder, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return t;
}

static void agrees_with_hugging_face(void **state)
{
    pseg_tokenizer *t = open_folder(FOLDER);
    (void)state;

    check_samples(t, "own");
    check_blocks(t, "own");
    pseg_tokenizer_free(t);
}

static void agrees_with_hugging_face_on_clip(void **state)
{
    pseg_tokenizer *t = open_folder(CLIP);
    (void)state;

    assert_int_equal(pseg_tokenizer_vocab(t), 49408);
    assert_int_equal(pseg_tokenizer_bos(t), 49406);
    assert_int_equal(pseg_tokenizer_eos(t), 49407);
    check_samples(t, "clip");
    check_blocks(t, "clip");
    pseg_tokenizer_free(t);
}

/* ---- single cases ---- */

static pseg_tokenizer *from_text(const char *merges)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_tokenizer *t;

    if (pseg_tokenizer_from_merges(&t, merges, strlen(merges), 100000, "test", &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return t;
}

static void assert_ids(const pseg_tokenizer *t, const char *s, size_t n_want, const int32_t *want)
{
    int32_t ids[MAX];
    size_t n = encode(ids, t, s, strlen(s));

    assert_int_equal(n, n_want + 2);
    assert_int_equal(ids[0], pseg_tokenizer_bos(t));
    assert_memory_equal(ids + 1, want, n_want * sizeof *want);
    assert_int_equal(ids[n - 1], pseg_tokenizer_eos(t));
}
#define IDS(...)                                                          \
    sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (const int32_t[]) \
    {                                                                     \
        __VA_ARGS__                                                       \
    }

/* 'a' is the 65th printable byte: id 64, and 320 at a word's end. */
static void ids_follow_from_merges(void **state)
{
    pseg_tokenizer *t = from_text("#version: 0.2\na b</w>\nb c</w>\na bc</w>\r\n\n");
    (void)state;

    assert_int_equal(pseg_tokenizer_vocab(t), 512 + 3 + 2);
    assert_ids(t, "a", IDS(320));
    assert_ids(t, "AB", IDS(512));
    assert_ids(t, "ab abc", IDS(512, 514));
    assert_ids(t, "abcd", IDS(64, 65, 66, 323));
    assert_ids(t, "", 0, (const int32_t[]){0});
    assert_ids(t, " \t\n\xC2\xA0", 0, (const int32_t[]){0});
    assert_ids(t, "a<|endoftext|>b", IDS(320, 516, 321));
    pseg_tokenizer_free(t);
}

static void long_text_is_cut_and_keeps_eos(void **state)
{
    pseg_tokenizer *t;
    pseg_err err = PSEG_ERR_INIT;
    int32_t ids[MAX];
    bool is_cut = false;
    size_t n, len = 300000;
    char *s = pseg_malloc(len);
    (void)state;

    assert_non_null(s);
    memset(s, 'x', len); /* one word of 300 kB: quadratic work would not end */
    assert_int_equal(pseg_tokenizer_bytes(&t, &err), PSEG_OK);
    assert_int_equal(pseg_tokenizer_encode(ids, MAX, &n, &is_cut, t, s, len, &err), PSEG_OK);
    assert_int_equal(n, MAX);
    assert_true(is_cut);
    assert_int_equal(ids[MAX - 1], pseg_tokenizer_eos(t));
    assert_int_equal(pseg_tokenizer_encode(ids, MAX, &n, &is_cut, t, s, MAX - 2, &err), PSEG_OK);
    assert_int_equal(n, MAX);
    assert_false(is_cut);
    assert_int_equal(pseg_tokenizer_encode(ids, 2, &n, &is_cut, t, s, 5, &err), PSEG_OK);
    assert_int_equal(n, 2);
    assert_true(is_cut);
    pseg_tokenizer_free(t);
    t = open_folder(FOLDER);
    assert_int_equal(pseg_tokenizer_encode(ids, MAX, &n, &is_cut, t, s, len, &err), PSEG_OK);
    assert_int_equal(n, MAX);
    pseg_tokenizer_free(t);
    pseg_free(s);
}

static void text_that_is_not_utf8_is_refused(void **state)
{
    static const char *const bad[] = {"\xFF", "a\xC3", "\xED\xA0\x80", "\xC0\x80",
                                      "\xF4\x90\x80\x80"};
    pseg_tokenizer *t = from_text("");
    pseg_err err;
    int32_t ids[MAX];
    size_t n;
    (void)state;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_err_clear(&err);
        assert_int_equal(pseg_tokenizer_encode(ids, MAX, &n, NULL, t, bad[i], strlen(bad[i]), &err),
                         PSEG_EINVAL);
        assert_int_equal(err.reason, PSEG_R_PROMPT_NOT_TEXT);
        assert_int_equal(n, 0);
    }
    pseg_tokenizer_free(t);
}

static void broken_merges_are_refused(void **state)
{
    static const char *const bad[] = {
        "a\n", "a b c\n", "ab c\n", " b\n", "a \n", "\xFF b\n", "a \xC2\xB0\xC2\xB0\n"};
    (void)state;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_err err = PSEG_ERR_INIT;
        pseg_tokenizer *t;
        assert_int_equal(
            pseg_tokenizer_from_merges(&t, bad[i], strlen(bad[i]), 100, "bad.txt", &err),
            PSEG_ECORRUPT);
        assert_int_equal(err.reason, PSEG_R_MODEL_CORRUPT);
        assert_non_null(strstr(err.msg, "bad.txt"));
        assert_null(t);
    }
}

/* ---- folders ---- */

static void write_file(const char *folder, const char *name, const char *content)
{
    char *path = pseg_path_join(folder, name);
    pseg_err err = PSEG_ERR_INIT;

    assert_non_null(path);
    assert_int_equal(pseg_file_write(path, content, strlen(content), &err), PSEG_OK);
    pseg_free(path);
}

static void remove_file(const char *folder, const char *name)
{
    char *path = pseg_path_join(folder, name);

    assert_non_null(path);
    remove(path);
    pseg_free(path);
}

/* A vocabulary of all symbols, shifted by 1000, with merge "a b</w>". */
static char *shifted_vocab(bool is_whole)
{
    static char out[65536];
    size_t at = (size_t)snprintf(out, sizeof out, "{\"<|startoftext|>\": 7, \"<|endoftext|>\": 9");
    int n = 0;

    for (int printable = 1; printable >= 0; printable--) {
        uint32_t stand_in = 256;
        for (uint32_t c = 0; c < 256; c++) {
            bool p = (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
            char sym[8] = "";
            if (p != printable)
                continue;
            size_t k = pseg_utf8_encode(sym, p ? c : stand_in++);
            sym[k] = '\0';
            const char *escape = c == '"' || c == '\\' ? "\\" : "";
            at += (size_t)snprintf(out + at, sizeof out - at, ", \"%s%s\": %d, \"%s%s</w>\": %d",
                                   escape, sym, 1000 + n, escape, sym, 1256 + n);
            n++;
        }
    }
    snprintf(out + at, sizeof out - at, "%s}", is_whole ? ", \"ab</w>\": 5000" : "");
    return out;
}

static void a_vocabulary_beside_the_merges_decides_ids(void **state)
{
    char folder[] = "/tmp/pseg-tokenizer-XXXXXX";
    pseg_err err = PSEG_ERR_INIT;
    pseg_tokenizer *t;
    static char json[70000];
    (void)state;

    assert_non_null(mkdtemp(folder));
    assert_int_equal(pseg_tokenizer_open(&t, folder, &err), PSEG_ENOTFOUND);
    assert_int_equal(err.reason, PSEG_R_MODEL_MISSING);
    write_file(folder, "merges.txt", "#version: 0.2\na b</w>\n");
    write_file(folder, "vocab.json", shifted_vocab(true));
    t = open_folder(folder);
    assert_int_equal(pseg_tokenizer_bos(t), 7);
    assert_int_equal(pseg_tokenizer_vocab(t), 5001);
    assert_ids(t, "ab a", IDS(5000, 1320));
    pseg_tokenizer_free(t);
    write_file(folder, "vocab.json", shifted_vocab(false));
    pseg_err_clear(&err);
    assert_int_equal(pseg_tokenizer_open(&t, folder, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "ab</w>"));

    /* tokenizer.json goes before merges.txt; merges in both of its forms; special tokens that are
     * looked for in the normalised text */
    for (int form = 0; form < 2; form++) {
        snprintf(json, sizeof json,
                 "{\"added_tokens\": [{\"id\": 9, \"content\": \"<|endoftext|>\", \"normalized\": "
                 "%s}], \"model\": {\"type\": \"BPE\", \"end_of_word_suffix\": \"</w>\", "
                 "\"merges\": [%s], \"vocab\": %s}}",
                 form ? "true" : "false", form ? "[\"a\", \"b</w>\"]" : "\"a b</w>\"",
                 shifted_vocab(true));
        write_file(folder, "tokenizer.json", json);
        t = open_folder(folder);
        assert_ids(t, "ab<|endoftext|>", IDS(5000, 9));
        if (form)
            assert_ids(t, "Ab<|EndOfText|>a", IDS(5000, 9, 1320));
        pseg_tokenizer_free(t);
    }
    write_file(folder, "tokenizer.json", "{\"model\": {\"type\": \"WordPiece\"}}");
    pseg_err_clear(&err);
    assert_int_equal(pseg_tokenizer_open(&t, folder, &err), PSEG_EUNSUPPORTED);
    write_file(folder, "tokenizer.json", "{");
    assert_int_equal(pseg_tokenizer_open(&t, folder, &err), PSEG_ECORRUPT);
    remove_file(folder, "tokenizer.json");
    remove_file(folder, "vocab.json");
    remove_file(folder, "merges.txt");
    write_file(folder, "bpe_simple_vocab_16e6.txt.gz", "\x1f\x8b\x08 cut short");
    assert_int_equal(pseg_tokenizer_open(&t, folder, &err), PSEG_ECORRUPT);
    write_file(folder, "bpe_simple_vocab_16e6.txt.gz", "");
    assert_int_equal(pseg_tokenizer_open(&t, folder, &err), PSEG_ECORRUPT);
    remove_file(folder, "bpe_simple_vocab_16e6.txt.gz");
    remove(folder);
}

/* The model that the project ships: its vocabulary is what its merges give by themselves. */
static void the_shipped_vocabulary_follows_from_its_merges(void **state)
{
    static const char folder[] = PSEG_TEST_SOURCE_DIR "/deploy/models/scenes/text";
    static char buffer[8192];
    pseg_err err = PSEG_ERR_INIT;
    pseg_tokenizer *with, *without;
    uint8_t *merges;
    size_t n;
    (void)state;

    with = open_folder(folder);
    assert_int_equal(pseg_file_read(&merges, &n,
                                    PSEG_TEST_SOURCE_DIR "/deploy/models/scenes/text/merges.txt",
                                    1 << 24, &err),
                     PSEG_OK);
    assert_int_equal(
        pseg_tokenizer_from_merges(&without, (const char *)merges, n, 100000, "merges.txt", &err),
        PSEG_OK);
    assert_int_equal(pseg_tokenizer_vocab(with), pseg_tokenizer_vocab(without));
    assert_int_equal(pseg_tokenizer_eos(with), pseg_tokenizer_eos(without));
    for (size_t i = 0; i < 3000; i++) {
        int32_t a[MAX], b[MAX];
        text s = {buffer, 0};
        make_string(&s, n_sweep() + RANDOM + i);
        size_t k = encode(a, with, s.s, s.n);
        assert_int_equal(encode(b, without, s.s, s.n), k);
        assert_memory_equal(a, b, k * sizeof *a);
    }
    pseg_tokenizer_free(with);
    pseg_tokenizer_free(without);
    pseg_free(merges);
}

static void survives_every_failing_allocation(void **state)
{
    pseg_tokenizer *t = NULL;
    bool is_done = false;
    (void)state;

    for (uint64_t i = 1; !is_done; i++) {
        pseg_err err = PSEG_ERR_INIT;
        int32_t ids[MAX];
        size_t n;
        pseg_alloc_fail_nth(i);
        pseg_status rc = pseg_tokenizer_from_merges(&t, "a b\nab c\n", 9, 10, "few", &err);
        if (rc == PSEG_OK)
            rc = pseg_tokenizer_encode(ids, MAX, &n, NULL, t, "abc d", 5, &err);
        pseg_alloc_fail_nth(0);
        assert_true(rc == PSEG_OK || rc == PSEG_ENOMEM);
        pseg_tokenizer_free(t);
        is_done = rc == PSEG_OK;
        assert_true(i < 1000);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {
        cmocka_unit_test(agrees_with_hugging_face),
        cmocka_unit_test(ids_follow_from_merges),
        cmocka_unit_test(long_text_is_cut_and_keeps_eos),
        cmocka_unit_test(text_that_is_not_utf8_is_refused),
        cmocka_unit_test(broken_merges_are_refused),
        cmocka_unit_test(a_vocabulary_beside_the_merges_decides_ids),
        cmocka_unit_test(the_shipped_vocabulary_follows_from_its_merges),
        cmocka_unit_test(survives_every_failing_allocation),
    };
    const struct CMUnitTest clip[] = {cmocka_unit_test(agrees_with_hugging_face_on_clip)};

    if (argc == 2 && strcmp(argv[1], "clip") == 0) {
        if (!pseg_file_exists(CLIP "/bpe_simple_vocab_16e6.txt.gz")) {
            puts("SKIP: CLIP's merges are not at " CLIP);
            return 77;
        }
        return cmocka_run_group_tests(clip, setup, teardown);
    }
    return cmocka_run_group_tests(own, setup, teardown);
}
