/* Scenes drawn by seed: an image of coloured shapes, the mask of each, and phrases that each mean
 * exactly one of them. They train and test the model in the box, and give every test of the service
 * an image whose right answer is known.
 *
 * A scene depends on its seed and size alone: only integer arithmetic and IEEE +, -, *, /, sqrt in
 * double (compiled without contraction) decide what is drawn, so it is the same on every machine.
 *
 * Promises, checked by tests: 3 to 8 objects; at least 60 % of each is visible; every phrase fits
 * exactly one object; for every phrase another object shares the target's kind or colour; for a
 * relational or superlative phrase, at least two objects fit the phrase without that clause. */
#ifndef PSEG_SCENES_H
#define PSEG_SCENES_H

#include "common/base/err.h"

#include <stdint.h>

enum { PSEG_SCENE_MAX_OBJECTS = 8, PSEG_SCENE_MAX_PHRASES = 6, PSEG_SCENE_MAX_TEXT = 160 };

typedef enum pseg_scene_kind {
    PSEG_SCENE_CIRCLE,
    PSEG_SCENE_SQUARE,
    PSEG_SCENE_TRIANGLE,
    PSEG_SCENE_STAR,
    PSEG_SCENE_HEXAGON,
    PSEG_SCENE_DIAMOND,
    PSEG_SCENE_CROSS,
    PSEG_SCENE_RING,
    PSEG_SCENE_HEART,
    PSEG_SCENE_CRESCENT,
    PSEG_SCENE_RECTANGLE,
    PSEG_SCENE_ELLIPSE,
    PSEG_SCENE_N_KINDS
} pseg_scene_kind;

enum { PSEG_SCENE_N_COLOURS = 11, PSEG_SCENE_N_SIZES = 3, PSEG_SCENE_N_TEXTURES = 4 };

typedef struct pseg_scene_object {
    int kind;      /* pseg_scene_kind */
    int colour;    /* red green blue yellow orange purple pink brown black white cyan */
    int size;      /* 0 small, 1 medium, 2 large */
    int texture;   /* 0 plain, 1 striped, 2 dotted, 3 checkered */
    double x, y;   /* centre, pixels */
    double radius; /* of the circle around it, pixels */
    int turn;      /* rotation in 1/256 turns */
    int bbox[4];   /* x, y, width, height of the visible part, pixels */
    int area;      /* visible pixels */
    uint8_t rgb[3];
    uint8_t rgb2[3]; /* the texture's second colour */
} pseg_scene_object;

typedef enum pseg_phrase_kind {
    PSEG_PHRASE_ATTRIBUTE,   /* "the small red circle" */
    PSEG_PHRASE_RELATION,    /* "the circle to the left of the blue star" */
    PSEG_PHRASE_SUPERLATIVE, /* "the leftmost circle" */
} pseg_phrase_kind;

typedef struct pseg_scene_phrase {
    pseg_phrase_kind kind;
    int target; /* index of the object it means */
    int other;  /* another object, that a model which does not read could as well take */
    char text[PSEG_SCENE_MAX_TEXT];
} pseg_scene_phrase;

typedef struct pseg_scene {
    uint64_t seed;
    int width, height; /* pixels, equal */
    uint8_t *rgb;      /* height * width * 3 */
    uint8_t *id;       /* height * width: 0 background, k the object k - 1, topmost at the centre */
    int n_objects, n_phrases;
    pseg_scene_object objects[PSEG_SCENE_MAX_OBJECTS];
    pseg_scene_phrase phrases[PSEG_SCENE_MAX_PHRASES];
} pseg_scene;

/* size_px: 64 to 1024. *out is freed with pseg_scene_free. Any thread.
 * Errors: PSEG_R_INVALID_ARGUMENT, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_scene_make(pseg_scene **out, uint64_t seed, int size_px, pseg_err *err);
void pseg_scene_free(pseg_scene *s);

/* Static names, as in phrases. */
const char *pseg_scene_kind_name(int kind);
const char *pseg_scene_colour_name(int colour);
const char *pseg_scene_size_name(int size);
const char *pseg_scene_texture_name(int texture);

/* "attribute", "relational", "superlative". */
const char *pseg_scene_phrase_kind_name(pseg_phrase_kind kind);

#endif
