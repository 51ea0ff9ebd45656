/* Choosing the objects of a scene and where they stand. */
#include "worker/scenes/internal.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t rgb[3];
} colours[PSEG_SCENE_N_COLOURS] = {
    {"red", {205, 30, 35}},     {"green", {35, 150, 55}},   {"blue", {35, 70, 205}},
    {"yellow", {240, 220, 40}}, {"orange", {245, 135, 20}}, {"purple", {125, 40, 165}},
    {"pink", {250, 150, 195}},  {"brown", {110, 65, 30}},   {"black", {22, 22, 24}},
    {"white", {245, 245, 245}}, {"cyan", {50, 215, 220}},
};
static const char *const kinds[PSEG_SCENE_N_KINDS] = {
    "circle", "square", "triangle", "star",     "hexagon",   "diamond",
    "cross",  "ring",   "heart",    "crescent", "rectangle", "ellipse"};
static const char *const sizes[PSEG_SCENE_N_SIZES] = {"small", "medium", "large"};
static const char *const textures[PSEG_SCENE_N_TEXTURES] = {"plain", "striped", "dotted",
                                                            "checkered"};
/* Radii at 224 pixels; the gaps keep the names unambiguous. */
static const double radii[PSEG_SCENE_N_SIZES][2] = {{13.5, 16}, {21, 25}, {33, 40}};

const char *pseg_scene_kind_name(int kind)
{
    return kinds[kind];
}

const char *pseg_scene_colour_name(int colour)
{
    return colours[colour].name;
}

const char *pseg_scene_size_name(int size)
{
    return sizes[size];
}

const char *pseg_scene_texture_name(int texture)
{
    return textures[texture];
}

const char *pseg_scene_phrase_kind_name(pseg_phrase_kind kind)
{
    return kind == PSEG_PHRASE_ATTRIBUTE  ? "attribute"
           : kind == PSEG_PHRASE_RELATION ? "relational"
                                          : "superlative";
}

static int other_than(rng *r, int n, int not_this)
{
    int x = rng_below(r, n - 1);

    return x + (x >= not_this);
}

/* Most objects repeat the kind or the colour of an earlier one, so that a phrase must be read to
 * its end. */
static void choose_looks(pseg_scene_object *o, const pseg_scene *s, rng *r)
{
    o->kind = rng_below(r, PSEG_SCENE_N_KINDS);
    o->colour = rng_below(r, PSEG_SCENE_N_COLOURS);
    o->size = rng_below(r, PSEG_SCENE_N_SIZES);
    o->texture = rng_below(r, 2) ? 0 : 1 + rng_below(r, PSEG_SCENE_N_TEXTURES - 1);
    if (s->n_objects == 0)
        return;
    const pseg_scene_object *like = &s->objects[rng_below(r, s->n_objects)];
    int choice = rng_below(r, 100);
    if (choice < 45) {
        o->kind = like->kind;
        o->colour = other_than(r, PSEG_SCENE_N_COLOURS, like->colour);
    } else if (choice < 65) {
        o->kind = other_than(r, PSEG_SCENE_N_KINDS, like->kind);
        o->colour = like->colour;
    } else if (choice < 85) {
        o->kind = like->kind;
        o->colour = like->colour;
        if (rng_below(r, 2))
            o->size = other_than(r, PSEG_SCENE_N_SIZES, like->size);
    }
}

static void choose_paint(pseg_scene_object *o, rng *r)
{
    for (int c = 0; c < 3; c++) {
        int v = colours[o->colour].rgb[c] + rng_below(r, 25) - 12;
        o->rgb[c] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
        /* Dark colours get a lighter second colour, all others a darker one. */
        o->rgb2[c] = (uint8_t)(o->colour == 8 ? o->rgb[c] + 75 : o->rgb[c] * 11 / 20);
    }
}

/* Kinds whose name depends on how they stand are turned a little only. */
static int choose_turn(int kind, rng *r)
{
    bool upright = kind == PSEG_SCENE_SQUARE || kind == PSEG_SCENE_DIAMOND ||
                   kind == PSEG_SCENE_CROSS || kind == PSEG_SCENE_HEART;

    return upright ? rng_below(r, 21) - 10 : rng_below(r, 256);
}

/* A place that stands clear of the others: a little overlap is welcome. */
static bool choose_place(pseg_scene_object *o, const pseg_scene *s, rng *r)
{
    double unit = s->width / 224.0;

    o->radius = rng_range(r, radii[o->size][0], radii[o->size][1]) * unit;
    for (int attempt = 0; attempt < 40; attempt++) {
        o->x = rng_range(r, o->radius * 0.95, s->width - o->radius * 0.95);
        o->y = rng_range(r, o->radius * 0.95, s->height - o->radius * 0.95);
        double touch = rng_below(r, 4) ? 1.02 : 0.72;
        bool clear = true;
        for (int k = 0; k < s->n_objects; k++) {
            const pseg_scene_object *p = &s->objects[k];
            double dx = p->x - o->x, dy = p->y - o->y;
            clear = clear && sqrt(dx * dx + dy * dy) >= touch * (p->radius + o->radius);
        }
        if (clear)
            return true;
    }
    return false;
}

static bool is_visible_enough(const pseg_scene *s, const int *full)
{
    double unit = s->width / 224.0;

    for (int k = 0; k < s->n_objects; k++)
        if (s->objects[k].area < 0.62 * full[k] || s->objects[k].area < 110 * unit * unit)
            return false;
    return true;
}

pseg_status pseg_scene_make(pseg_scene **out, uint64_t seed, int size_px, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int full[PSEG_SCENE_MAX_OBJECTS];
    pseg_scene *s = NULL;
    rng r;

    *out = NULL;
    if (size_px < 64 || size_px > 1024)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "scene size of %d pixels is not between 64 and 1024",
                  size_px);
    size_t n = (size_t)size_px * (size_t)size_px;
    s = pseg_calloc(1, sizeof *s);
    if (s) {
        s->rgb = pseg_malloc(3 * n);
        s->id = pseg_malloc(n);
    }
    if (!s || !s->rgb || !s->id)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a scene of %d x %d", size_px, size_px);
    s->seed = seed;
    s->width = s->height = size_px;
    rng_seed(&r, seed);
    /* A scene that hides too much of an object, or of which nothing can be said, is drawn anew from
     * where the random numbers stand. */
    do {
        int want = 3 + rng_below(&r, PSEG_SCENE_MAX_OBJECTS - 2);
        s->n_objects = 0;
        for (int k = 0; k < want; k++) {
            pseg_scene_object o = {0};
            choose_looks(&o, s, &r);
            if (!choose_place(&o, s, &r))
                continue;
            choose_paint(&o, &r);
            o.turn = choose_turn(o.kind, &r);
            s->objects[s->n_objects++] = o;
        }
        s->n_phrases = 0;
        if (s->n_objects < 3)
            continue;
        scene_paint(s, &r, full);
        if (is_visible_enough(s, full))
            scene_speak(s, &r);
    } while (s->n_phrases < 2);
    *out = s;
    s = NULL;
out:
    pseg_scene_free(s);
    return rc;
}

void pseg_scene_free(pseg_scene *s)
{
    if (!s)
        return;
    pseg_free(s->rgb);
    pseg_free(s->id);
    pseg_free(s);
}
