/* The promises of worker/scenes/scenes.h. Phrases are checked by a reader of their own, which knows
 * the words and the picture's facts but nothing of how phrases are made. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/hash.h"
#include "common/mask/mask.h"
#include "worker/scenes/dataset.h"
#include "worker/scenes/internal.h"
#include "worker/scenes/raw.h"
#include "worker/scenes/scenes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_SCENES = 2000 };

/* ---- a reader of phrases ---- */

typedef struct noun_phrase {
    int kind, colour, size, texture;
} noun_phrase;

static int word_in(const char *word, const char *const *list, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(word, list[i]) == 0)
            return i;
    return -1;
}

/* Takes one word into the noun phrase; false if it is no word of one. */
static bool take(noun_phrase *p, const char *w)
{
    static const char *const size_words[] = {"small",        "little", "tiny", "medium",
                                             "medium-sized", "large",  "big"};
    static const int size_of[] = {0, 0, 0, 1, 1, 2, 2};
    static const char *const texture_words[] = {"plain",  "solid",   "striped",  "stripy",
                                                "dotted", "spotted", "checkered"};
    static const int texture_of[] = {0, 0, 1, 1, 2, 2, 3};
    static const char *const any[] = {"shape", "object", "thing", "the"};
    int i;

    if ((i = word_in(w, size_words, 7)) >= 0)
        p->size = size_of[i];
    else if ((i = word_in(w, texture_words, 7)) >= 0)
        p->texture = texture_of[i];
    else if (word_in(w, any, 4) < 0) {
        for (i = 0; i < PSEG_SCENE_N_COLOURS; i++)
            if (strcmp(w, pseg_scene_colour_name(i)) == 0) {
                p->colour = i;
                return true;
            }
        for (i = 0; i < PSEG_SCENE_N_KINDS; i++)
            if (strcmp(w, pseg_scene_kind_name(i)) == 0) {
                p->kind = i;
                return true;
            }
        return false;
    }
    return true;
}

static bool is_a(const noun_phrase *p, const pseg_scene_object *o)
{
    return (p->kind < 0 || p->kind == o->kind) && (p->colour < 0 || p->colour == o->colour) &&
           (p->size < 0 || p->size == o->size) && (p->texture < 0 || p->texture == o->texture);
}

/* What the words between two noun phrases, or before or after one, ask for. */
static char clause_of(const char *w)
{
    static const struct {
        const char *word;
        char clause;
    } table[] = {{"left", 'L'},    {"right", 'R'},   {"above", 'A'},    {"over", 'A'},
                 {"below", 'B'},   {"under", 'B'},   {"beneath", 'B'},  {"next", 'N'},
                 {"nearest", 'N'}, {"closest", 'N'}, {"leftmost", 'l'}, {"rightmost", 'r'},
                 {"topmost", 't'}, {"highest", 't'}, {"top", 't'},      {"bottommost", 'b'},
                 {"lowest", 'b'},  {"bottom", 'b'},  {"largest", 'g'},  {"biggest", 'g'},
                 {"smallest", 's'}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(w, table[i].word) == 0)
            return table[i].clause;
    return 0;
}

static double rank(char clause, const pseg_scene_object *o, const pseg_scene_object *a)
{
    double dx = a ? o->x - a->x : 0, dy = a ? o->y - a->y : 0;

    switch (clause) {
    case 'l':
        return -o->x;
    case 'r':
        return o->x;
    case 't':
        return -o->y;
    case 'b':
        return o->y;
    case 'g':
        return o->radius;
    case 's':
        return -o->radius;
    case 'N':
        return -sqrt(dx * dx + dy * dy);
    case 'L':
        return -dx;
    case 'R':
        return dx;
    case 'A':
        return -dy;
    default:
        return dy;
    }
}

typedef struct reading {
    noun_phrase what, anchor;
    char clause; /* 0: none */
    bool has_anchor;
} reading;

static bool read_phrase(reading *r, const char *text)
{
    char copy[PSEG_SCENE_MAX_TEXT], *save = NULL;

    *r = (reading){{-1, -1, -1, -1}, {-1, -1, -1, -1}, 0, false};
    strcpy(copy, text);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        char c = clause_of(w);
        if (c) {
            r->clause = c;
            r->has_anchor = strchr("LRABN", c) != NULL;
        } else if (strcmp(w, "to") == 0 || strcmp(w, "of") == 0 || strcmp(w, "on") == 0)
            continue;
        else if (strcmp(w, "far") == 0) { /* "on the far left" */
            w = strtok_r(NULL, " ", &save);
            r->clause = strcmp(w, "left") == 0 ? 'l' : 'r';
        } else if (!take(r->has_anchor ? &r->anchor : &r->what, w))
            return false;
    }
    return true;
}

/* The one object that fits, without any clause; -1 none, -2 several. */
static int only_one(const pseg_scene *s, const noun_phrase *p)
{
    int found = -1;

    for (int k = 0; k < s->n_objects; k++)
        if (is_a(p, &s->objects[k])) {
            if (found >= 0)
                return -2;
            found = k;
        }
    return found;
}

/* The only object that the phrase means; -1 none, -2 several, -3 not understood. *n_loose: how many
 * fit its noun phrase without the clause. *margin: by how much the clause holds for the object and
 * for no other, pixels at 224 (for "nearest": the runner-up's distance over its own). */
static int meaning(const pseg_scene *s, const char *text, int *n_loose, double *margin)
{
    reading r;
    int a = -1, found = -1;
    double best = -1e9, second = -1e9;

    if (!read_phrase(&r, text))
        return -3;
    if (r.has_anchor && (a = only_one(s, &r.anchor)) < 0)
        return a;
    if (!r.clause) {
        *n_loose = 1;
        return only_one(s, &r.what);
    }
    *n_loose = 0;
    for (int k = 0; k < s->n_objects; k++) {
        const pseg_scene_object *o = &s->objects[k];
        if (k == a || !is_a(&r.what, o))
            continue;
        ++*n_loose;
        double x = rank(r.clause, o, a < 0 ? NULL : &s->objects[a]);
        if (x > best) {
            second = best;
            best = x;
            found = k;
        } else if (x > second)
            second = x;
    }
    *margin = (best - second) * 224 / s->width;
    if (strchr("LRAB", r.clause)) {
        if (best <= 0 || second > 0)
            return best <= 0 ? -1 : -2;
        *margin = best * 224 / s->width;
    } else if (r.clause == 'N')
        *margin = second / best;
    return found;
}

/* ---- tests ---- */

static void every_phrase_means_its_target_alone(void **state)
{
    int kinds[3] = {0};

    (void)state;
    for (uint64_t seed = 0; seed < N_SCENES; seed++) {
        pseg_scene *s;
        assert_int_equal(pseg_scene_make(&s, seed, 64, NULL), PSEG_OK);
        assert_in_range(s->n_objects, 3, 8);
        assert_in_range(s->n_phrases, 2, 6);
        for (int i = 0; i < s->n_phrases; i++) {
            const pseg_scene_phrase *p = &s->phrases[i];
            int loose = 0, m;
            double margin = 0;
            reading r;
            m = meaning(s, p->text, &loose, &margin);
            if (m != p->target)
                fail_msg("seed %d: \"%s\" means %d, said of %d", (int)seed, p->text, m, p->target);
            if (p->kind != PSEG_PHRASE_ATTRIBUTE && loose < 2)
                fail_msg("seed %d: \"%s\" needs no clause", (int)seed, p->text);
            assert_true(read_phrase(&r, p->text));
            double least = !r.clause                ? 0
                           : r.clause == 'N'        ? 1.5
                           : strchr("gs", r.clause) ? 4.5
                                                    : 12;
            if (margin < least - 1e-9)
                fail_msg("seed %d: \"%s\" holds by %g only", (int)seed, p->text, margin);
            assert_int_not_equal(p->other, p->target);
            assert_in_range(p->other, 0, s->n_objects - 1);
            if (p->kind == PSEG_PHRASE_ATTRIBUTE)
                assert_true(s->objects[p->other].kind == s->objects[p->target].kind ||
                            s->objects[p->other].colour == s->objects[p->target].colour);
            else
                assert_true(is_a(&r.what, &s->objects[p->other]));
            bool shares = false;
            for (int k = 0; k < s->n_objects; k++)
                shares = shares ||
                         (k != p->target && (s->objects[k].kind == s->objects[p->target].kind ||
                                             s->objects[k].colour == s->objects[p->target].colour));
            assert_true(shares);
            kinds[p->kind]++;
        }
        pseg_scene_free(s);
    }
    int all = kinds[0] + kinds[1] + kinds[2];
    assert_true(kinds[PSEG_PHRASE_RELATION] > all * 3 / 10);
    assert_true(kinds[PSEG_PHRASE_ATTRIBUTE] > all / 4);
    assert_true(kinds[PSEG_PHRASE_SUPERLATIVE] > all / 10);
}

static void the_reader_can_tell_a_wrong_phrase(void **state)
{
    pseg_scene *s;
    int loose, wrong = 0, n = 0;
    double margin;

    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        assert_int_equal(pseg_scene_make(&s, seed, 64, NULL), PSEG_OK);
        for (int i = 0; i < s->n_phrases; i++, n++)
            wrong += meaning(s, s->phrases[i].text, &loose, &margin) != s->phrases[i].other;
        pseg_scene_free(s);
    }
    assert_int_equal(wrong, n);
}

static void objects_are_visible_and_measured(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        pseg_scene *s;
        assert_int_equal(pseg_scene_make(&s, seed, 224, NULL), PSEG_OK);
        for (int k = 0; k < s->n_objects; k++) {
            const pseg_scene_object *o = &s->objects[k];
            int area = 0, x0 = 999, x1 = -1, y0 = 999, y1 = -1;
            for (int y = 0; y < 224; y++)
                for (int x = 0; x < 224; x++)
                    if (s->id[y * 224 + x] == k + 1) {
                        area++;
                        x0 = x < x0 ? x : x0;
                        x1 = x > x1 ? x : x1;
                        y0 = y < y0 ? y : y0;
                        y1 = y > y1 ? y : y1;
                    }
            assert_int_equal(o->area, area);
            assert_true(area >= 110);
            assert_int_equal(o->bbox[0], x0);
            assert_int_equal(o->bbox[1], y0);
            assert_int_equal(o->bbox[2], x1 - x0 + 1);
            assert_int_equal(o->bbox[3], y1 - y0 + 1);
        }
        pseg_scene_free(s);
    }
}

/* Draws the objects' outlines again with the C library's sine, and compares with the id map. */
static void objects_lie_where_they_are_said_to(void **state)
{
    const double full_turn = 6.283185307179586;
    int wrong = 0, occluded = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        pseg_scene *s;
        int full[PSEG_SCENE_MAX_OBJECTS] = {0};
        assert_int_equal(pseg_scene_make(&s, seed, 112, NULL), PSEG_OK);
        for (int i = 0; i < 112 * 112; i++) {
            int top = 0;
            for (int k = 0; k < s->n_objects; k++) {
                const pseg_scene_object *o = &s->objects[k];
                double sn = sin(o->turn * full_turn / 256), cs = cos(o->turn * full_turn / 256);
                double x = (i % 112 + 0.5 - o->x) / o->radius;
                double y = (i / 112 + 0.5 - o->y) / o->radius;
                if (shape_contains(o->kind, x * cs + y * sn, y * cs - x * sn)) {
                    full[k]++;
                    top = k + 1;
                }
            }
            wrong += s->id[i] != top;
        }
        for (int k = 0; k < s->n_objects; k++) {
            assert_true(s->objects[k].area >= 0.6 * full[k]);
            occluded += s->objects[k].area < 0.95 * full[k];
        }
        pseg_scene_free(s);
    }
    assert_true(wrong <= 5);     /* pixel centres that lie on an outline */
    assert_true(occluded >= 20); /* there is something to see through */
}

static void a_colour_is_nearest_to_its_own_name(void **state)
{
    enum { MANY = 200 };
    static pseg_scene_object seen[MANY * PSEG_SCENE_MAX_OBJECTS];
    double mean[PSEG_SCENE_N_COLOURS][3] = {{0}};
    int n_seen = 0, n[PSEG_SCENE_N_COLOURS] = {0};

    (void)state;
    for (uint64_t seed = 0; seed < MANY; seed++) {
        pseg_scene *s;
        assert_int_equal(pseg_scene_make(&s, seed, 64, NULL), PSEG_OK);
        for (int k = 0; k < s->n_objects; k++)
            seen[n_seen++] = s->objects[k];
        pseg_scene_free(s);
    }
    for (int i = 0; i < n_seen; i++, n[seen[i - 1].colour]++)
        for (int c = 0; c < 3; c++)
            mean[seen[i].colour][c] += seen[i].rgb[c];
    for (int i = 0; i < n_seen; i++) {
        double least = 1e9;
        int nearest = -1;
        for (int m = 0; m < PSEG_SCENE_N_COLOURS; m++) {
            double d = 0;
            for (int c = 0; c < 3; c++) {
                double x = seen[i].rgb[c] - mean[m][c] / n[m];
                d += x * x;
            }
            if (d < least) {
                least = d;
                nearest = m;
            }
        }
        assert_int_equal(nearest, seen[i].colour);
    }
}

static void digest(char hex[65], uint64_t seed, int size)
{
    pseg_scene *s;
    pseg_buf b;
    uint8_t d[32];

    assert_int_equal(pseg_scene_make(&s, seed, size, NULL), PSEG_OK);
    pseg_buf_init(&b, 1 << 24);
    assert_int_equal(pseg_scene_write_raw(&b, s, false, NULL), PSEG_OK);
    pseg_sha256_of(d, b.data, b.len);
    pseg_hex(hex, d, 32);
    pseg_buf_deinit(&b);
    pseg_scene_free(s);
}

/* A model was trained on these scenes: they must stay what they are, on every machine. */
static void a_seed_always_gives_the_same_scene(void **state)
{
    static const struct {
        uint64_t seed;
        int size;
        const char *sha256;
    } known[] = {
#include "tests/unit/scenes_digests.h"
    };
    char hex[65];

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        digest(hex, known[i].seed, known[i].size);
        assert_string_equal(hex, known[i].sha256);
    }
}

/* With describe, the record ends in one text an object, and only its phrase count differs before.
 */
static void descriptions_follow_the_phrases(void **state)
{
    pseg_scene *s;
    pseg_buf plain, full;

    (void)state;
    assert_int_equal(pseg_scene_make(&s, 7, 64, NULL), PSEG_OK);
    pseg_buf_init(&plain, 1 << 20);
    pseg_buf_init(&full, 1 << 20);
    assert_int_equal(pseg_scene_write_raw(&plain, s, false, NULL), PSEG_OK);
    assert_int_equal(pseg_scene_write_raw(&full, s, true, NULL), PSEG_OK);
    assert_int_equal(plain.data[22], s->n_phrases);
    assert_int_equal(full.data[22], s->n_phrases + s->n_objects);
    assert_memory_equal(full.data + 24, plain.data + 24, plain.len - 24);
    const uint8_t *p = full.data + plain.len;
    for (int k = 0; k < s->n_objects; k++) {
        const pseg_scene_object *o = &s->objects[k];
        char want[100];
        int n = snprintf(want, sizeof want, "%s %s %s %s", pseg_scene_size_name(o->size),
                         pseg_scene_texture_name(o->texture), pseg_scene_colour_name(o->colour),
                         pseg_scene_kind_name(o->kind));
        assert_int_equal(p[0], k + 1);
        assert_int_equal(p[1], 0);
        assert_int_equal(p[2], PSEG_SCENE_RAW_LOOKS);
        assert_int_equal(p[4], n);
        assert_memory_equal(p + 6, want, (size_t)n);
        p += 6 + n;
    }
    assert_ptr_equal(p, full.data + full.len);
    pseg_buf_deinit(&plain);
    pseg_buf_deinit(&full);
    pseg_scene_free(s);
}

static void sizes_out_of_range_are_refused(void **state)
{
    pseg_scene *s;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    assert_int_equal(pseg_scene_make(&s, 0, 63, &e), PSEG_EINVAL);
    assert_null(s);
    assert_int_equal(pseg_scene_make(&s, 0, 1025, &e), PSEG_EINVAL);
    assert_non_null(strstr(e.msg, "1025"));
    pseg_scene_free(NULL);
}

static int count_lines(const char *path, char *first, size_t n)
{
    FILE *f = fopen(path, "r");
    int lines = 0;

    if (!f)
        return -1;
    assert_non_null(fgets(first, (int)n, f));
    for (int c; (c = fgetc(f)) != EOF;)
        lines += c == '\n';
    fclose(f);
    return lines + 1;
}

static void a_data_set_holds_what_was_added(void **state)
{
    char dir[] = "/tmp/pseg-scenes-XXXXXX", path[96], line[32768], want[200];
    pseg_scene_dataset *d;
    pseg_scene *s[2];
    pseg_mask *mask;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 2; i++)
        assert_int_equal(pseg_scene_make(&s[i], (uint64_t)(40 + i), 64, NULL), PSEG_OK);
    snprintf(path, sizeof path, "%s/scenes.jsonl", dir);
    assert_int_equal(pseg_scene_dataset_open(&d, dir, &e), PSEG_OK);
    assert_int_equal(pseg_scene_dataset_add(d, s[0], &e), PSEG_OK);
    assert_int_equal(pseg_scene_dataset_add(d, s[1], &e), PSEG_OK);
    assert_int_equal(count_lines(path, line, sizeof line), -1); /* not whole yet */
    assert_int_equal(pseg_scene_dataset_finish(d, &e), PSEG_OK);
    assert_int_equal(pseg_scene_dataset_finish(d, &e), PSEG_EINTERNAL);
    pseg_scene_dataset_free(d);
    assert_int_equal(count_lines(path, line, sizeof line), 2);
    snprintf(want, sizeof want,
             "{\"image\":\"images/000040.png\",\"width\":64,\"height\":64,"
             "\"seed\":40,\"objects\":[{\"id\":1,");
    assert_memory_equal(line, want, strlen(want));
    const pseg_scene_phrase *p = &s[0]->phrases[0];
    snprintf(want, sizeof want, "\"sentences\":[\"%s\"]", p->text);
    char *at = strstr(line, want);
    assert_non_null(at);

    /* The sample's mask is the target's pixels. Counts may hold a backslash, doubled in JSON. */
    char counts[4096];
    size_t n = 0;
    at = strstr(at, "\"counts\":\"");
    assert_non_null(at);
    for (at += strlen("\"counts\":\""); *at != '"'; at++) {
        at += *at == '\\';
        assert_true(n < sizeof counts - 1);
        counts[n++] = *at;
    }
    counts[n] = 0;
    assert_int_equal(pseg_mask_from_rle(&mask, counts, 64, 64, &e), PSEG_OK);
    for (int i = 0; i < 64 * 64; i++)
        assert_int_equal(mask->data[i], s[0]->id[i] == p->target + 1);
    pseg_mask_free(mask);

    /* A set that is opened again and left is not there. */
    assert_int_equal(pseg_scene_dataset_open(&d, dir, &e), PSEG_OK);
    assert_int_equal(pseg_scene_dataset_add(d, s[1], &e), PSEG_OK);
    pseg_scene_dataset_free(d);
    assert_int_equal(count_lines(path, line, sizeof line), -1);

    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < s[i]->n_objects; k++) {
            snprintf(path, sizeof path, "%s/masks/%06d_%d.png", dir, 40 + i, k + 1);
            assert_int_equal(remove(path), 0);
        }
        snprintf(path, sizeof path, "%s/images/%06d.png", dir, 40 + i);
        assert_int_equal(remove(path), 0);
        pseg_scene_free(s[i]);
    }
    static const char *const folders[] = {"masks", "images", ""};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, folders[i]);
        assert_int_equal(rmdir(path), 0); /* nothing else is left behind */
    }
}

static void a_data_set_in_no_folder_is_refused(void **state)
{
    pseg_scene_dataset *d;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    assert_true(pseg_scene_dataset_open(&d, "/dev/null/set", &e) < 0);
    assert_null(d);
    assert_non_null(strstr(e.msg, "/dev/null/set"));
    pseg_scene_dataset_free(NULL);
}

static pseg_status make_set(const char *dir, const pseg_scene *s, pseg_err *err)
{
    pseg_scene_dataset *d = NULL;
    pseg_status rc = pseg_scene_dataset_open(&d, dir, err);

    if (rc == PSEG_OK)
        rc = pseg_scene_dataset_add(d, s, err);
    if (rc == PSEG_OK)
        rc = pseg_scene_dataset_finish(d, err);
    pseg_scene_dataset_free(d);
    return rc;
}

/* Each allocation in turn fails; the sanitizer build sees what is not given back. */
static void short_memory_is_an_error(void **state)
{
    char dir[] = "/tmp/pseg-scenes-XXXXXX", command[64];
    pseg_status rc = PSEG_ENOMEM;
    pseg_scene *s;
    uint64_t nth;

    (void)state;
    for (nth = 1; nth <= 3; nth++) {
        pseg_alloc_fail_nth(nth);
        assert_int_equal(pseg_scene_make(&s, 0, 64, NULL), PSEG_ENOMEM);
        assert_null(s);
    }
    pseg_alloc_fail_nth(0);
    assert_non_null(mkdtemp(dir));
    assert_int_equal(pseg_scene_make(&s, 2, 64, NULL), PSEG_OK);
    for (nth = 1; rc == PSEG_ENOMEM; nth++) {
        pseg_alloc_fail_nth(nth);
        rc = make_set(dir, s, NULL);
    }
    pseg_alloc_fail_nth(0);
    assert_int_equal(rc, PSEG_OK);
    assert_true(nth > 20);
    pseg_scene_free(s);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_phrase_means_its_target_alone),
        cmocka_unit_test(the_reader_can_tell_a_wrong_phrase),
        cmocka_unit_test(objects_are_visible_and_measured),
        cmocka_unit_test(objects_lie_where_they_are_said_to),
        cmocka_unit_test(a_colour_is_nearest_to_its_own_name),
        cmocka_unit_test(a_seed_always_gives_the_same_scene),
        cmocka_unit_test(a_data_set_holds_what_was_added),
        cmocka_unit_test(a_data_set_in_no_folder_is_refused),
        cmocka_unit_test(short_memory_is_an_error),
        cmocka_unit_test(descriptions_follow_the_phrases),
        cmocka_unit_test(sizes_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
