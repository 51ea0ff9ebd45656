/* Phrases for mirrored photos. A word is a run of ASCII letters and of bytes past ASCII, so that
 * letters of other scripts do not end one. */
#include "common/base/alloc.h"
#include "worker/data/arrays.h"

#include <string.h>
#include <strings.h>

typedef struct word {
    const char *at; /* not ended by NUL */
    size_t n;
} word;

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (unsigned char)c >= 0x80;
}

/* The next word of *s, which moves behind it; n = 0: there is none. */
static word next_word(const char **s)
{
    word w = {*s, 0};

    while (*w.at && !is_letter(*w.at))
        w.at++;
    while (w.at[w.n] && is_letter(w.at[w.n]))
        w.n++;
    *s = w.at + w.n;
    return w;
}

static bool is_one_of(word w, const char *const *list)
{
    for (; *list; list++)
        if (strlen(*list) == w.n && strncasecmp(*list, w.at, w.n) == 0)
            return true;
    return false;
}

/* What may follow "left" or "right" in one word that means a side. */
static bool is_side(word w, size_t *n_side)
{
    static const char *const sides[] = {"left", "right"};
    static const char *const ends[] = {"",       "s",      "y",    "ie",   "ies",  "most",
                                       "more",   "er",     "hand", "side", "ward", "wards",
                                       "handed", "hander", "ish",  NULL};

    for (int i = 0; i < 2; i++) {
        size_t n = strlen(sides[i]);
        if (w.n >= n && strncasecmp(w.at, sides[i], n) == 0 &&
            is_one_of((word){w.at + n, w.n - n}, ends)) {
            *n_side = n;
            return true;
        }
    }
    return false;
}

/* "right behind" is near and behind, in a mirror too; "the right behind him" is a side. "left
 * behind" and "left over" are what somebody left. */
static bool is_adverb(word before, word w, const char *rest)
{
    static const char *const nouns[] = {"the", "to",    "on",   "at", "far", "his",  "her", "its",
                                        "our", "their", "your", "my", "in",  "from", NULL};
    static const char *const follow_right[] = {
        "next",       "behind",  "beside", "besides", "above",   "below",  "under", "beneath",
        "underneath", "over",    "near",   "there",   "here",    "before", "after", "up",
        "now",        "through", "along",  "against", "between", "inside", NULL};
    static const char *const follow_left[] = {"behind", "over", NULL};
    word after = next_word(&rest);

    if (before.n && is_one_of(before, nouns))
        return false;
    return (w.n == 5 && strncasecmp(w.at, "right", 5) == 0 && is_one_of(after, follow_right)) ||
           (w.n == 4 && strncasecmp(w.at, "left", 4) == 0 && is_one_of(after, follow_left));
}

/* "left" for "Left" and so on: the other side in the case of this one. */
static size_t put_other(char *out, const char *side, size_t n)
{
    static const char *const other_of[] = {"right", "left"};
    const char *other = other_of[n == 5];
    bool is_first = side[0] < 'a', is_all = is_first && side[1] < 'a';
    size_t k = strlen(other);

    for (size_t i = 0; i < k; i++)
        out[i] = is_all || (is_first && i == 0) ? (char)(other[i] - 'a' + 'A') : other[i];
    return k;
}

static bool is_unsafe(const char *phrase)
{
    static const char *const words[] = {"clock",  "oclock",           "clockwise", "anticlockwise",
                                        "letter", "letters",          "number",    "says",
                                        "reads",  "counterclockwise", NULL};
    word w;

    while ((w = next_word(&phrase)).n)
        if (is_one_of(w, words))
            return true;
    return false;
}

pseg_status pseg_data_mirror_phrase(char **out, pseg_mirror *what, const char *phrase,
                                    pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *s = phrase, *copied = phrase;
    word before = {NULL, 0}, w;
    size_t n = 0, side;
    char *text;

    *what = PSEG_MIRROR_SAME;
    /* Each "left" of 4 bytes becomes 5 at most. */
    *out = text = pseg_malloc(strlen(phrase) + strlen(phrase) / 4 + 2);
    if (!text)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    if (is_unsafe(phrase)) {
        *what = PSEG_MIRROR_UNSAFE;
        memcpy(text, phrase, strlen(phrase) + 1);
        return rc;
    }
    while ((w = next_word(&s)).n) {
        if (is_side(w, &side) && !is_adverb(before, w, s)) {
            memcpy(text + n, copied, (size_t)(w.at - copied));
            n += (size_t)(w.at - copied);
            n += put_other(text + n, w.at, side);
            copied = w.at + side;
            *what = PSEG_MIRROR_CHANGED;
        }
        before = w;
    }
    memcpy(text + n, copied, strlen(copied) + 1);
out:
    return rc;
}
