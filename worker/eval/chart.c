#include "worker/eval/chart.h"

#include <math.h>

double eval_chart_x(const eval_chart *c, double x)
{
    return c->left + (x - c->x.from) / (c->x.to - c->x.from) * c->width;
}

double eval_chart_y(const eval_chart *c, double y)
{
    return c->top + c->height - (y - c->y.from) / (c->y.to - c->y.from) * c->height;
}

static void open_svg(eval_page *p, const char *title, const char *description, double width,
                     double height)
{
    int id = ++p->n_charts;

    eval_put(p,
             "<svg viewBox=\"0 0 %.0f %.0f\" role=img aria-labelledby=\"t%d d%d\">"
             "<title id=t%d>",
             width, height, id, id, id);
    eval_put_text(p, title, 200);
    eval_put(p, "</title><desc id=d%d>", id);
    eval_put_text(p, description, 600);
    eval_put(p, "</desc>\n");
}

static void draw_axis_x(eval_chart *c)
{
    eval_page *p = c->page;
    double bottom = c->top + c->height;
    long n = c->x.step > 0 ? lround((c->x.to - c->x.from) / c->x.step) : -1;

    for (long k = 0; k <= n; k++) {
        double v = c->x.from + (double)k * c->x.step, at = eval_chart_x(c, v);
        eval_put(p, "<path class=grid d=\"M%.1f %.1fV%.1f\"/>", at, c->top, bottom);
        eval_put(p, "<text class=tick x=%.1f y=%.1f text-anchor=middle>%.*f</text>\n", at,
                 bottom + 16, c->x.digits, v);
    }
    if (c->x.name)
        eval_put(p, "<text class=axis x=%.1f y=%.1f text-anchor=middle>%s</text>\n",
                 c->left + c->width / 2, bottom + 36, c->x.name);
}

static void draw_axis_y(eval_chart *c)
{
    eval_page *p = c->page;
    long n = c->y.step > 0 ? lround((c->y.to - c->y.from) / c->y.step) : -1;

    for (long k = 0; k <= n; k++) {
        double v = c->y.from + (double)k * c->y.step, at = eval_chart_y(c, v);
        eval_put(p, "<path class=grid d=\"M%.1f %.1fH%.1f\"/>", c->left, at, c->left + c->width);
        eval_put(p, "<text class=tick x=%.1f y=%.1f text-anchor=end>%.*f</text>\n", c->left - 8,
                 at + 4, c->y.digits, v);
    }
    if (c->y.name)
        eval_put(p,
                 "<text class=axis text-anchor=middle transform=\"translate(14 %.1f) "
                 "rotate(-90)\">%s</text>\n",
                 c->top + c->height / 2, c->y.name);
}

void eval_chart_begin(eval_chart *c, eval_page *p, const char *title, const char *description,
                      eval_axis x, eval_axis y, double width, double height)
{
    *c = (eval_chart){.page = p,
                      .x = x,
                      .y = y,
                      .left = 58,
                      .top = 24,
                      .width = width - 58 - 16,
                      .height = height - 24 - 44};
    open_svg(p, title, description, width, height);
    draw_axis_x(c);
    draw_axis_y(c);
}

void eval_chart_end(eval_chart *c)
{
    eval_put(c->page, "</svg>\n");
}

void eval_rows_begin(eval_chart *c, eval_page *p, const char *title, const char *description,
                     eval_axis x, size_t n)
{
    double height = 26 * (double)n;

    *c = (eval_chart){.page = p,
                      .x = x,
                      .y = {(double)n, 0, 0, 0, NULL},
                      .left = 252,
                      .top = 8,
                      .width = 720 - 252 - 20,
                      .height = height};
    open_svg(p, title, description, 720, height + 8 + 46);
    draw_axis_x(c);
}

void eval_rows_name(eval_chart *c, size_t i, const char *name, unsigned n)
{
    eval_page *p = c->page;
    double y = eval_chart_y(c, (double)i + 0.5) + 4;

    eval_put(p, "<text class=name x=%.1f y=%.1f text-anchor=end>", c->left - 58, y);
    eval_put_text(p, name, 22);
    eval_put(p, "</text><text class=tick x=%.1f y=%.1f text-anchor=end>%u</text>\n", c->left - 10,
             y, n);
}

void eval_chart_bar(eval_chart *c, double x0, double x1, double y, const char *kind)
{
    double a = eval_chart_x(c, x0), b = eval_chart_x(c, x1), top = eval_chart_y(c, y);

    if (y > c->y.from)
        eval_put(c->page, "<rect class=%s x=%.1f y=%.1f width=%.1f height=%.1f />\n", kind, a + 1,
                 top, b - a - 2, c->top + c->height - top);
}

void eval_chart_dot(eval_chart *c, double x, double y, const char *kind)
{
    if (isfinite(x) && isfinite(y))
        eval_put(c->page, "<circle class=%s cx=%.1f cy=%.1f r=4.5 />\n", kind, eval_chart_x(c, x),
                 eval_chart_y(c, y));
}

void eval_chart_whisker(eval_chart *c, double x0, double y0, double x1, double y1, const char *kind)
{
    if (!isfinite(x0) || !isfinite(y0) || !isfinite(x1) || !isfinite(y1))
        return;
    eval_put(c->page, "<path class=\"whisker %s\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", kind,
             eval_chart_x(c, x0), eval_chart_y(c, y0), eval_chart_x(c, x1), eval_chart_y(c, y1));
}

void eval_chart_line(eval_chart *c, const double *x, const double *y, size_t n, const char *kind)
{
    bool is_down = false;

    eval_put(c->page, "<path class=\"line %s\" d=\"", kind);
    for (size_t i = 0; i < n; i++) {
        bool is_there = isfinite(x[i]) && isfinite(y[i]);
        if (is_there)
            eval_put(c->page, "%s%.1f %.1f", is_down ? "L" : "M", eval_chart_x(c, x[i]),
                     eval_chart_y(c, y[i]));
        is_down = is_there;
    }
    eval_put(c->page, "\"/>\n");
}

void eval_chart_name_x(eval_chart *c, double x, const char *name, unsigned n)
{
    double at = eval_chart_x(c, x), bottom = c->top + c->height;

    eval_put(c->page, "<text class=tick x=%.1f y=%.1f text-anchor=middle>", at, bottom + 16);
    eval_put_text(c->page, name, 14);
    eval_put(c->page, "</text>");
    if (n)
        eval_put(c->page, "<text class=count x=%.1f y=%.1f text-anchor=middle>%u</text>\n", at,
                 c->top - 8, n);
}
