/* Drawing. Everything that decides a pixel's object is arithmetic that every IEEE machine does
 * alike: no libm but sqrt. */
#include "worker/scenes/internal.h"

#include <math.h>
#include <string.h>

/* ---- random numbers ---- */

void rng_seed(rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = (seed += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        r->s[i] = z ^ (z >> 31);
    }
}

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t rng_next(rng *r)
{
    uint64_t *s = r->s, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

int rng_below(rng *r, int n)
{
    return (int)((rng_next(r) >> 32) * (uint64_t)n >> 32);
}

double rng_unit(rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

double rng_range(rng *r, double lo, double hi)
{
    return lo + (hi - lo) * rng_unit(r);
}

/* ---- shapes ---- */

/* sin and cos of turn/256 of a full turn by Taylor series in [-pi/4, pi/4] and symmetry. */
static void sin_cos(double *s, double *c, int turn)
{
    turn &= 255;
    int quadrant = (turn + 32) / 64 % 4, rest = turn - ((turn + 32) / 64) * 64;
    double x = rest * (3.14159265358979323846 / 128), x2 = x * x;
    double sn = x * (1 - x2 / 6 * (1 - x2 / 20 * (1 - x2 / 42 * (1 - x2 / 72 * (1 - x2 / 110)))));
    double cs = 1 - x2 / 2 * (1 - x2 / 12 * (1 - x2 / 30 * (1 - x2 / 56 * (1 - x2 / 90))));
    *s = quadrant == 0 ? sn : quadrant == 1 ? cs : quadrant == 2 ? -sn : -cs;
    *c = quadrant == 0 ? cs : quadrant == 1 ? -sn : quadrant == 2 ? -cs : sn;
}

/* A polygon with corners on rings of the given radii in turn, the first straight up. */
static bool in_polygon(double u, double v, int n, const double radii[2])
{
    bool inside = false;
    double px = 0, py = 0, s, c;

    for (int i = 0; i <= n; i++) {
        sin_cos(&s, &c, i * 256 / n % 256);
        /* 256 is not a multiple of every n: the corner's error is under half a degree. */
        double x = radii[i % 2] * s, y = -radii[i % 2] * c;
        if (i > 0 && ((y > v) != (py > v)) && u < (px - x) * (v - y) / (py - y) + x)
            inside = !inside;
        px = x;
        py = y;
    }
    return inside;
}

bool shape_contains(int kind, double u, double v)
{
    static const double one[2] = {1, 1}, star[2] = {1, 0.45};
    double r2 = u * u + v * v, a;

    if (r2 > 1)
        return false;
    switch (kind) {
    case PSEG_SCENE_CIRCLE:
        return r2 <= 0.92 * 0.92;
    case PSEG_SCENE_SQUARE:
        return fabs(u) <= 0.7 && fabs(v) <= 0.7;
    case PSEG_SCENE_TRIANGLE:
        return in_polygon(u, v, 3, one);
    case PSEG_SCENE_STAR:
        return in_polygon(u, v, 10, star);
    case PSEG_SCENE_HEXAGON:
        return in_polygon(u, v, 6, one);
    case PSEG_SCENE_DIAMOND:
        return fabs(u) / 0.6 + fabs(v) <= 1;
    case PSEG_SCENE_CROSS:
        return (fabs(u) <= 0.3 && fabs(v) <= 0.92) || (fabs(v) <= 0.3 && fabs(u) <= 0.92);
    case PSEG_SCENE_RING:
        return r2 <= 0.95 * 0.95 && r2 >= 0.5 * 0.5;
    case PSEG_SCENE_HEART:
        u *= 1.2;
        v = -v * 1.2 + 0.12;
        a = u * u + v * v - 1;
        return a * a * a - u * u * v * v * v <= 0;
    case PSEG_SCENE_CRESCENT:
        return r2 <= 0.95 * 0.95 && (u - 0.45) * (u - 0.45) + v * v >= 0.72 * 0.72;
    case PSEG_SCENE_RECTANGLE:
        return fabs(u) <= 0.88 && fabs(v) <= 0.42;
    default: /* ellipse */
        return u * u / (0.97 * 0.97) + v * v / (0.55 * 0.55) <= 1;
    }
}

/* ---- background ---- */

static int clamp(double x)
{
    return x < 0 ? 0 : x > 255 ? 255 : (int)x;
}

/* Low-contrast ellipses and bars: clutter that is never an object. */
static void paint_clutter(pseg_scene *s, rng *r)
{
    double unit = s->width / 224.0;

    for (int k = rng_below(r, 14); k > 0; k--) {
        double x = rng_range(r, 0, s->width), y = rng_range(r, 0, s->height);
        double a = rng_range(r, 8, 60) * unit, b = rng_range(r, 1.5, 30) * unit;
        double alpha = rng_range(r, 0.08, 0.26), colour[3], sn, cs;
        bool box = rng_below(r, 2);
        sin_cos(&sn, &cs, rng_below(r, 256));
        for (int c = 0; c < 3; c++)
            colour[c] = rng_range(r, 30, 225);
        int reach = (int)(a > b ? a : b) + 2;
        for (int py = (int)y - reach; py <= (int)y + reach; py++)
            for (int px = (int)x - reach; px <= (int)x + reach; px++) {
                if (px < 0 || py < 0 || px >= s->width || py >= s->height)
                    continue;
                double u = ((px - x) * cs + (py - y) * sn) / a,
                       v = ((py - y) * cs - (px - x) * sn) / b;
                if (box ? fabs(u) > 1 || fabs(v) > 1 : u * u + v * v > 1)
                    continue;
                uint8_t *p = s->rgb + 3 * ((size_t)py * (size_t)s->width + (size_t)px);
                for (int c = 0; c < 3; c++)
                    p[c] = (uint8_t)clamp(p[c] + alpha * (colour[c] - p[c]));
            }
    }
}

static void paint_background(pseg_scene *s, rng *r)
{
    double level = rng_range(r, 85, 175), from[3], dx[3], dy[3];

    for (int c = 0; c < 3; c++) {
        from[c] = level + rng_range(r, -22, 22);
        dx[c] = rng_range(r, -30, 30) / s->width;
        dy[c] = rng_range(r, -30, 30) / s->height;
    }
    uint8_t *p = s->rgb;
    for (int y = 0; y < s->height; y++)
        for (int x = 0; x < s->width; x++)
            for (int c = 0; c < 3; c++)
                *p++ = (uint8_t)clamp(from[c] + dx[c] * x + dy[c] * y);
    paint_clutter(s, r);
}

/* ---- objects ---- */

static bool is_second_colour(const pseg_scene_object *o, double u, double v)
{
    /* Cells keep a readable size whatever the object's. */
    double cell = o->size == 0 ? 0.42 : o->size == 1 ? 0.32 : 0.24;
    long iu = (long)floor(u / cell), iv = (long)floor(v / cell);
    double fu = u / cell - (double)iu - 0.5, fv = v / cell - (double)iv - 0.5;

    switch (o->texture) {
    case 1:
        return iv & 1;
    case 2:
        return fu * fu + fv * fv < 0.1;
    case 3:
        return (iu + iv) & 1;
    default:
        return false;
    }
}

static int paint_object(pseg_scene *s, int k)
{
    enum { SUB = 4 };
    const pseg_scene_object *o = &s->objects[k];
    int full = 0, x0 = (int)(o->x - o->radius) - 1, x1 = (int)(o->x + o->radius) + 2;
    int y0 = (int)(o->y - o->radius) - 1, y1 = (int)(o->y + o->radius) + 2;
    double sn, cs;

    sin_cos(&sn, &cs, o->turn);
    for (int y = y0 < 0 ? 0 : y0; y < y1 && y < s->height; y++)
        for (int x = x0 < 0 ? 0 : x0; x < x1 && x < s->width; x++) {
            int first = 0, second = 0;
            for (int i = 0; i < SUB * SUB; i++) {
                double px = x + (i % SUB + 0.5) / SUB - o->x, py = y + (i / SUB + 0.5) / SUB - o->y;
                double u = (px * cs + py * sn) / o->radius, v = (py * cs - px * sn) / o->radius;
                if (!shape_contains(o->kind, u, v))
                    continue;
                if (is_second_colour(o, u, v))
                    second++;
                else
                    first++;
            }
            size_t at = (size_t)y * (size_t)s->width + (size_t)x;
            double px = x + 0.5 - o->x, py = y + 0.5 - o->y;
            if (shape_contains(o->kind, (px * cs + py * sn) / o->radius,
                               (py * cs - px * sn) / o->radius)) {
                s->id[at] = (uint8_t)(k + 1);
                full++;
            }
            int rest = SUB * SUB - first - second;
            for (int c = 0; c < 3 && first + second; c++)
                s->rgb[3 * at + (size_t)c] = (uint8_t)((s->rgb[3 * at + (size_t)c] * rest +
                                                        o->rgb[c] * first + o->rgb2[c] * second) /
                                                       (SUB * SUB));
        }
    return full;
}

/* A slope of light over everything, then grain. */
static void paint_light(pseg_scene *s, rng *r)
{
    double gx = rng_range(r, -0.18, 0.18) / s->width, gy = rng_range(r, -0.18, 0.18) / s->height;
    int grain = rng_below(r, 9);
    uint8_t *p = s->rgb;

    for (int y = 0; y < s->height; y++)
        for (int x = 0; x < s->width; x++) {
            double light = 1 + gx * (x - s->width / 2) + gy * (y - s->height / 2);
            uint64_t n = grain ? rng_next(r) : 0;
            for (int c = 0; c < 3; c++, p++, n >>= 16)
                *p = (uint8_t)clamp(*p * light +
                                    (grain ? (int)(n & 0xFFFF) % (2 * grain + 1) - grain : 0));
        }
}

static void measure(pseg_scene *s)
{
    for (int k = 0; k < s->n_objects; k++) {
        pseg_scene_object *o = &s->objects[k];
        int x0 = s->width, y0 = s->height, x1 = -1, y1 = -1;
        o->area = 0;
        for (int y = 0; y < s->height; y++)
            for (int x = 0; x < s->width; x++)
                if (s->id[(size_t)y * (size_t)s->width + (size_t)x] == k + 1) {
                    o->area++;
                    x0 = x < x0 ? x : x0;
                    x1 = x > x1 ? x : x1;
                    y0 = y < y0 ? y : y0;
                    y1 = y;
                }
        o->bbox[0] = x0;
        o->bbox[1] = y0;
        o->bbox[2] = x1 - x0 + 1;
        o->bbox[3] = y1 - y0 + 1;
    }
}

void scene_paint(pseg_scene *s, rng *r, int full[PSEG_SCENE_MAX_OBJECTS])
{
    memset(s->id, 0, (size_t)s->width * (size_t)s->height);
    paint_background(s, r);
    for (int k = 0; k < s->n_objects; k++)
        full[k] = paint_object(s, k);
    paint_light(s, r);
    measure(s);
}
