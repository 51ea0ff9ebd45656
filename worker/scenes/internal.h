/* Shared by the files of this folder. */
#ifndef PSEG_SCENES_INTERNAL_H
#define PSEG_SCENES_INTERNAL_H

#include "worker/scenes/scenes.h"

/* xoshiro256** (Blackman and Vigna), seeded by splitmix64. */
typedef struct rng {
    uint64_t s[4];
} rng;

void rng_seed(rng *r, uint64_t seed);
uint64_t rng_next(rng *r);
int rng_below(rng *r, int n);                   /* 0 .. n-1 */
double rng_unit(rng *r);                        /* [0, 1) */
double rng_range(rng *r, double lo, double hi); /* [lo, hi) */

/* Is the point (u, v), in units of the object's radius and before rotation, inside the kind? */
bool shape_contains(int kind, double u, double v);

/* Draws the background, then the objects in order, into s->rgb and s->id; sets bbox and area.
 * full[k] becomes the number of pixels that object k has without the others over it. */
void scene_paint(pseg_scene *s, rng *r, int full[PSEG_SCENE_MAX_OBJECTS]);

/* Fills s->phrases. */
void scene_speak(pseg_scene *s, rng *r);

#endif
