#include "worker/eval/words.h"
#include "common/base/utf8.h"

#include <stdbool.h>
#include <string.h>

const char *pseg_eval_relation_name(pseg_eval_relation r)
{
    static const char *const names[] = {
#define NAME(id, name) name,
        PSEG_EVAL_RELATIONS(NAME)
#undef NAME
    };
    return names[r];
}

uint32_t pseg_eval_count_words(const char *text)
{
    size_t n = strlen(text);
    uint32_t words = 0, cp;
    bool is_inside = false;

    for (size_t at = 0; at < n;) {
        at += pseg_utf8_decode(&cp, text + at, n - at);
        bool is_space = pseg_utf8_is_space(cp);
        words += !is_space && !is_inside;
        is_inside = !is_space;
    }
    return words;
}

/* Each list begins and ends with a space. */
static const char *const words_of[] = {
    [PSEG_EVAL_RELATION_LEFT] = " left leftmost lefthand lefty ",
    [PSEG_EVAL_RELATION_RIGHT] = " right rightmost righthand righty ",
    [PSEG_EVAL_RELATION_ABOVE] = " above over top topmost upper uppermost up highest higher atop ",
    [PSEG_EVAL_RELATION_BELOW] =
        " below under underneath beneath bottom bottommost lower lowest lowermost down ",
    [PSEG_EVAL_RELATION_FRONT] = " front foreground frontmost ",
    [PSEG_EVAL_RELATION_BEHIND] = " behind back background rear ",
    [PSEG_EVAL_RELATION_MIDDLE] = " middle center centre central between amid among ",
    [PSEG_EVAL_RELATION_NEAR] =
        " near nearest nearer next beside besides adjacent close closest closer by touching "
        "against alongside ",
    [PSEG_EVAL_RELATION_ORDER] =
        " first second third fourth last biggest largest bigger larger smallest smaller tallest "
        "taller shortest shorter furthest farthest most least ",
    [PSEG_EVAL_RELATION_NONE] = " ",
};

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

uint32_t pseg_eval_relations(const char *text)
{
    uint32_t found = 0;
    char word[18];

    while (*text) {
        size_t n = 0;
        while (*text && !is_letter(*text))
            text++;
        word[0] = ' ';
        for (; is_letter(*text); text++, n++)
            if (n < sizeof word - 3)
                word[n + 1] = (char)(*text | 0x20);
        if (n == 0 || n > sizeof word - 3)
            continue;
        word[n + 1] = ' ';
        word[n + 2] = '\0';
        for (int r = 0; r < PSEG_EVAL_RELATION_NONE; r++)
            if (strstr(words_of[r], word))
                found |= 1u << r;
    }
    return found ? found : 1u << PSEG_EVAL_RELATION_NONE;
}
