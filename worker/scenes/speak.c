/* Phrases: each is built from a description of the target, and kept only if it fits the target
 * alone. */
#include "worker/scenes/internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What a phrase says of an object; -1: nothing. */
typedef struct description {
    int kind, colour, size, texture;
} description;

static bool fits(const description *d, const pseg_scene_object *o)
{
    return (d->kind < 0 || d->kind == o->kind) && (d->colour < 0 || d->colour == o->colour) &&
           (d->size < 0 || d->size == o->size) && (d->texture < 0 || d->texture == o->texture);
}

static int count_fitting(const description *d, const pseg_scene *s)
{
    int n = 0;

    for (int k = 0; k < s->n_objects; k++)
        n += fits(d, &s->objects[k]);
    return n;
}

static description describe(const pseg_scene_object *o, bool kind, bool colour, bool size,
                            bool texture)
{
    return (description){kind ? o->kind : -1, colour ? o->colour : -1, size ? o->size : -1,
                         texture ? o->texture : -1};
}

static const char *pick(rng *r, const char *const *words, int n)
{
    return words[rng_below(r, n)];
}
#define PICK(r, ...)                            \
    pick(r, (const char *const[]){__VA_ARGS__}, \
         (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static void say(char *out, size_t n, const description *d, rng *r)
{
    const char *size = "", *texture = "", *colour = "", *noun;

    if (d->size == 0)
        size = PICK(r, "small ", "small ", "little ", "tiny ");
    else if (d->size == 1)
        size = PICK(r, "medium ", "medium-sized ");
    else if (d->size == 2)
        size = PICK(r, "large ", "large ", "big ");
    if (d->texture == 1)
        texture = PICK(r, "striped ", "stripy ");
    else if (d->texture == 2)
        texture = PICK(r, "dotted ", "spotted ");
    else if (d->texture == 3)
        texture = "checkered ";
    else if (d->texture == 0)
        texture = PICK(r, "plain ", "solid ");
    char colour_text[32];
    if (d->colour >= 0) {
        snprintf(colour_text, sizeof colour_text, "%s ", pseg_scene_colour_name(d->colour));
        colour = colour_text;
    }
    noun = d->kind >= 0 ? pseg_scene_kind_name(d->kind) : PICK(r, "shape", "object", "thing");
    snprintf(out, n, "%s%s%s%s", size, texture, colour, noun);
}

/* Another object that shares the target's kind, or else its colour; -1 if there is none. */
static int look_alike(const pseg_scene *s, int target, rng *r)
{
    const pseg_scene_object *t = &s->objects[target];
    int start = rng_below(r, s->n_objects), found = -1;

    for (int i = 0; i < s->n_objects; i++) {
        int k = (start + i) % s->n_objects;
        if (k == target)
            continue;
        if (s->objects[k].kind == t->kind)
            return k;
        if (s->objects[k].colour == t->colour)
            found = k;
    }
    return found;
}

static bool say_attribute(pseg_scene_phrase *p, const pseg_scene *s, rng *r)
{
    int target = rng_below(r, s->n_objects);
    int parts = 1 + rng_below(r, 15);
    description d = describe(&s->objects[target], parts & 1, parts & 2, parts & 4, parts & 8);
    char text[100];

    p->other = look_alike(s, target, r);
    if (p->other < 0 || count_fitting(&d, s) != 1)
        return false;
    say(text, sizeof text, &d, r);
    snprintf(p->text, sizeof p->text, "%s%s", rng_below(r, 4) ? "the " : "", text);
    p->kind = PSEG_PHRASE_ATTRIBUTE;
    p->target = target;
    return true;
}

/* A description which fits the target and at least one other; *other becomes one of those. */
static bool ambiguous(description *d, int *other, const pseg_scene *s, int target, rng *r)
{
    int parts = rng_below(r, 16);

    *d = describe(&s->objects[target], parts & 1, parts & 2, parts & 4, parts & 8);
    int n = count_fitting(d, s);
    if (n < 2)
        return false;
    int skip = rng_below(r, n - 1);
    for (int k = 0; k < s->n_objects; k++)
        if (k != target && fits(d, &s->objects[k]) && skip-- == 0)
            *other = k;
    return true;
}

enum { LEFT, RIGHT, ABOVE, BELOW, NEAREST, N_RELATIONS };

/* How far o lies in the relation's direction from a, pixels. */
static double along(int relation, const pseg_scene_object *o, const pseg_scene_object *a)
{
    switch (relation) {
    case LEFT:
        return a->x - o->x;
    case RIGHT:
        return o->x - a->x;
    case ABOVE:
        return a->y - o->y;
    default:
        return o->y - a->y;
    }
}

static double distance(const pseg_scene_object *a, const pseg_scene_object *b)
{
    double dx = a->x - b->x, dy = a->y - b->y;

    return sqrt(dx * dx + dy * dy);
}

/* Does the relation single out the target among all that fit d, beyond doubt? */
static bool relation_is_clear(int relation, const description *d, const pseg_scene *s, int target,
                              int anchor)
{
    const pseg_scene_object *t = &s->objects[target], *a = &s->objects[anchor];
    double margin = 14 * s->width / 224.0;

    if (relation != NEAREST && along(relation, t, a) < margin)
        return false;
    for (int k = 0; k < s->n_objects; k++) {
        const pseg_scene_object *o = &s->objects[k];
        if (k == target || k == anchor || !fits(d, o))
            continue;
        if (relation == NEAREST ? distance(o, a) < 1.5 * distance(t, a)
                                : along(relation, o, a) > -margin / 2)
            return false;
    }
    return true;
}

static bool say_relation(pseg_scene_phrase *p, const pseg_scene *s, rng *r)
{
    int target = rng_below(r, s->n_objects), anchor = rng_below(r, s->n_objects);
    int relation = rng_below(r, N_RELATIONS), parts = 1 + rng_below(r, 15);
    description d, a;
    char text[70], anchor_text[70];

    if (anchor == target || look_alike(s, target, r) < 0 || !ambiguous(&d, &p->other, s, target, r))
        return false;
    a = describe(&s->objects[anchor], parts & 1, parts & 2, parts & 4, parts & 8);
    if (count_fitting(&a, s) != 1 || fits(&d, &s->objects[anchor]))
        return false;
    if (!relation_is_clear(relation, &d, s, target, anchor))
        return false;
    const char *link = relation == LEFT ? PICK(r, "to the left of", "left of", "on the left of")
                       : relation == RIGHT
                           ? PICK(r, "to the right of", "right of", "on the right of")
                       : relation == ABOVE ? PICK(r, "above", "over")
                       : relation == BELOW ? PICK(r, "below", "under", "beneath")
                                           : PICK(r, "next to", "nearest to", "closest to");
    say(text, sizeof text, &d, r);
    say(anchor_text, sizeof anchor_text, &a, r);
    snprintf(p->text, sizeof p->text, "%s%s %s the %s", rng_below(r, 4) ? "the " : "", text, link,
             anchor_text);
    p->kind = PSEG_PHRASE_RELATION;
    p->target = target;
    return true;
}

enum { LEFTMOST, RIGHTMOST, TOPMOST, BOTTOMMOST, LARGEST, SMALLEST, N_EXTREMES };

static double extreme_value(int extreme, const pseg_scene_object *o)
{
    switch (extreme) {
    case LEFTMOST:
        return -o->x;
    case RIGHTMOST:
        return o->x;
    case TOPMOST:
        return -o->y;
    case BOTTOMMOST:
        return o->y;
    case LARGEST:
        return o->radius;
    default:
        return -o->radius;
    }
}

static bool say_superlative(pseg_scene_phrase *p, const pseg_scene *s, rng *r)
{
    int target = rng_below(r, s->n_objects), extreme = rng_below(r, N_EXTREMES);
    double margin = (extreme >= LARGEST ? 4.5 : 12) * s->width / 224.0;
    description d;
    char text[80];

    if (look_alike(s, target, r) < 0 || !ambiguous(&d, &p->other, s, target, r))
        return false;
    if (extreme >= LARGEST && d.size >= 0)
        return false;
    for (int k = 0; k < s->n_objects; k++)
        if (k != target && fits(&d, &s->objects[k]) &&
            extreme_value(extreme, &s->objects[k]) >
                extreme_value(extreme, &s->objects[target]) - margin)
            return false;
    say(text, sizeof text, &d, r);
    switch (extreme) {
    case LEFTMOST:
        if (rng_below(r, 3) == 0)
            snprintf(p->text, sizeof p->text, "the %s on the far left", text);
        else
            snprintf(p->text, sizeof p->text, "the leftmost %s", text);
        break;
    case RIGHTMOST:
        if (rng_below(r, 3) == 0)
            snprintf(p->text, sizeof p->text, "the %s on the far right", text);
        else
            snprintf(p->text, sizeof p->text, "the rightmost %s", text);
        break;
    case TOPMOST:
        snprintf(p->text, sizeof p->text, "the %s %s", PICK(r, "topmost", "highest", "top"), text);
        break;
    case BOTTOMMOST:
        snprintf(p->text, sizeof p->text, "the %s %s", PICK(r, "bottommost", "lowest", "bottom"),
                 text);
        break;
    case LARGEST:
        snprintf(p->text, sizeof p->text, "the %s %s", PICK(r, "largest", "biggest"), text);
        break;
    default:
        snprintf(p->text, sizeof p->text, "the smallest %s", text);
    }
    p->kind = PSEG_PHRASE_SUPERLATIVE;
    p->target = target;
    return true;
}

void scene_speak(pseg_scene *s, rng *r)
{
    /* Two relations, two attributes and a superlative in five; a relation needs luck, so it is
     * tried longest. A scene in which none can be said gets more of the others. */
    static const pseg_phrase_kind order[] = {PSEG_PHRASE_RELATION, PSEG_PHRASE_ATTRIBUTE,
                                             PSEG_PHRASE_SUPERLATIVE, PSEG_PHRASE_RELATION,
                                             PSEG_PHRASE_ATTRIBUTE};
    int want = 3 + rng_below(r, PSEG_SCENE_MAX_PHRASES - 2);

    s->n_phrases = 0;
    for (int round = 0; round < 10 && s->n_phrases < want; round++) {
        pseg_scene_phrase p = {0};
        pseg_phrase_kind kind = order[round % 5];
        int tries = kind == PSEG_PHRASE_RELATION ? 600 : 60;
        bool ok = false;
        for (int i = 0; i < tries && !ok; i++)
            ok = kind == PSEG_PHRASE_ATTRIBUTE  ? say_attribute(&p, s, r)
                 : kind == PSEG_PHRASE_RELATION ? say_relation(&p, s, r)
                                                : say_superlative(&p, s, r);
        for (int k = 0; k < s->n_phrases && ok; k++)
            ok = strcmp(s->phrases[k].text, p.text) != 0;
        if (ok)
            s->phrases[s->n_phrases++] = p;
    }
}
