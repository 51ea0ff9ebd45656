/* The promises of worker/scenes/scenes.h. Phrases are checked by a reader of their own, which knows
 * the words and the picture's facts but nothing of how phrases are made. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/hash.h"
#include "worker/scenes/raw.h"
#include "worker/scenes/scenes.h"

#include <math.h>
#include <string.h>

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

/* The only object that the phrase means; -1 none, -2 several, -3 not understood. *n_loose: how many
 * fit its noun phrase without the clause. */
static int meaning(const pseg_scene *s, const char *text, int *n_loose)
{
    noun_phrase p = {-1, -1, -1, -1}, anchor = p;
    char copy[PSEG_SCENE_MAX_TEXT], *save = NULL, clause = 0;
    bool in_anchor = false;
    int a = -1, found = -1;

    strcpy(copy, text);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        char c = clause_of(w);
        if (c) {
            clause = c;
            in_anchor = strchr("LRABN", c) != NULL;
        } else if (strcmp(w, "to") == 0 || strcmp(w, "of") == 0 || strcmp(w, "on") == 0)
            continue;
        else if (strcmp(w, "far") == 0) { /* "on the far left" */
            w = strtok_r(NULL, " ", &save);
            clause = strcmp(w, "left") == 0 ? 'l' : 'r';
        } else if (!take(in_anchor ? &anchor : &p, w))
            return -3;
    }
    for (int k = 0; in_anchor && k < s->n_objects; k++)
        if (is_a(&anchor, &s->objects[k])) {
            if (a >= 0)
                return -2;
            a = k;
        }
    if (in_anchor && a < 0)
        return -1;
    *n_loose = 0;
    for (int k = 0; k < s->n_objects; k++) {
        const pseg_scene_object *o = &s->objects[k];
        if (k == a || !is_a(&p, o))
            continue;
        ++*n_loose;
        if (clause && strchr("LRAB", clause)) {
            if (rank(clause, o, &s->objects[a]) <= 0)
                continue;
            if (found >= 0)
                return -2;
            found = k;
        } else if (!clause) {
            if (found >= 0)
                return -2;
            found = k;
        } else if (found < 0 || rank(clause, o, a < 0 ? NULL : &s->objects[a]) >
                                    rank(clause, &s->objects[found], a < 0 ? NULL : &s->objects[a]))
            found = k;
    }
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
            int loose = 0, m = meaning(s, p->text, &loose);
            if (m != p->target)
                fail_msg("seed %d: \"%s\" means %d, said of %d", (int)seed, p->text, m, p->target);
            if (p->kind != PSEG_PHRASE_ATTRIBUTE && loose < 2)
                fail_msg("seed %d: \"%s\" needs no clause", (int)seed, p->text);
            assert_int_not_equal(p->other, p->target);
            assert_in_range(p->other, 0, s->n_objects - 1);
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

    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        assert_int_equal(pseg_scene_make(&s, seed, 64, NULL), PSEG_OK);
        for (int i = 0; i < s->n_phrases; i++, n++)
            wrong += meaning(s, s->phrases[i].text, &loose) != s->phrases[i].other;
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

static void digest(char hex[65], uint64_t seed, int size)
{
    pseg_scene *s;
    pseg_buf b;
    uint8_t d[32];

    assert_int_equal(pseg_scene_make(&s, seed, size, NULL), PSEG_OK);
    pseg_buf_init(&b, 1 << 24);
    assert_int_equal(pseg_scene_write_raw(&b, s, NULL), PSEG_OK);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_phrase_means_its_target_alone),
        cmocka_unit_test(the_reader_can_tell_a_wrong_phrase),
        cmocka_unit_test(objects_are_visible_and_measured),
        cmocka_unit_test(a_seed_always_gives_the_same_scene),
        cmocka_unit_test(sizes_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
