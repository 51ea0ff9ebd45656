/* What a phrase says on its face: how many words, and which relations its words name. English. */
#ifndef PSEG_EVAL_WORDS_H
#define PSEG_EVAL_WORDS_H

#include <stdint.h>

/* Runs of anything but Unicode white space. text: valid UTF-8. */
uint32_t pseg_eval_count_words(const char *text);

/* X(name): the groups that pseg_eval_relations tells apart, by key words. */
#define PSEG_EVAL_RELATIONS(X)       \
    X(LEFT, "left")                  \
    X(RIGHT, "right")                \
    X(ABOVE, "above, top")           \
    X(BELOW, "below, bottom")        \
    X(FRONT, "in front")             \
    X(BEHIND, "behind, back")        \
    X(MIDDLE, "middle, between")     \
    X(NEAR, "near, next to")         \
    X(ORDER, "order, size compared") \
    X(NONE, "none named")
typedef enum pseg_eval_relation {
#define PSEG_EVAL_RELATION_ENUM(id, name) PSEG_EVAL_RELATION_##id,
    PSEG_EVAL_RELATIONS(PSEG_EVAL_RELATION_ENUM)
#undef PSEG_EVAL_RELATION_ENUM
        PSEG_EVAL_N_RELATIONS
} pseg_eval_relation;
const char *pseg_eval_relation_name(pseg_eval_relation r); /* static */

/* Bit r is set where a whole word of the phrase, without regard to case, is one of relation r; bit
 * NONE where no other is. */
uint32_t pseg_eval_relations(const char *text);

#endif
