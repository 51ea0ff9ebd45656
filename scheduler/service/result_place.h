/* Where a reader of a batch's ends is, in a form that outlasts a Redis which fails over. Private to
 * this folder.
 *
 * The list of ends only grows, and a replica has a part of it from the beginning on. So two servers
 * that have the same end at the same place have the same ends before it: a place is a number and a
 * checksum of the end there, and a reader whose place is not that of the list any more goes back to
 * an earlier one that may be, and from there to the beginning.
 *
 *     result_trail_parse(&t, token, &err);
 *     ... reads the list from result_trail_first(&t) on ...
 *     while (!result_trail_holds(&t, items, n)) { result_trail_go_back(&t); ... reads again ... }
 *     result_trail_step(&t, &items[i]);  result_trail_write(token, &t); */
#ifndef PSEG_SERVICE_RESULT_PLACE_H
#define PSEG_SERVICE_RESULT_PLACE_H

#include "common/queue/queue.h"

/* A reader goes back to its last mark, fewer ends than this behind its place; from there to the one
 * before. */
#define RESULT_BACK_STEP   4096
#define RESULT_TOKEN_BYTES 112

/* Behind the first n ends; sum: of the last of these. */
typedef struct result_place {
    int64_t n;
    uint64_t sum;
} result_place;

typedef struct result_trail {
    result_place now, mark, back; /* back.n <= mark.n <= now.n */
} result_trail;

/* token: "" is the beginning. Errors: PSEG_R_PAGE_TOKEN_INVALID. */
pseg_status result_trail_parse(result_trail *t, const char *token, pseg_err *err);
void result_trail_write(char out[RESULT_TOKEN_BYTES], const result_trail *t);
/* Number of the end to read from: the one before the place, which tells whether the list is the
 * same; 0 at the beginning. */
int64_t result_trail_first(const result_trail *t);
/* items: the list's, from result_trail_first on. */
bool result_trail_holds(const result_trail *t, const pseg_queue_item *items, size_t n);
/* To an earlier place; not at the beginning. */
void result_trail_go_back(result_trail *t);
void result_trail_step(result_trail *t, const pseg_queue_item *it);

#endif
