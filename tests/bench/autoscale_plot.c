#include "tests/bench/autoscale_plot.h"

#include <stdio.h>

/* One panel: a name, its greatest value, and a line of SAMPLES points per rule. */
static void panel(FILE *f, int top, const char *name, const autoscale_samples *const seen[],
                  int first, int last, double (*of)(const sample *))
{
    static const char *const colours[N_RULES] = {"#0072b2", "#009e73", "#d55e00", "#888888"};
    double most = 1;

    for (int r = first; r <= last; r++)
        for (int i = 0; i < SAMPLES; i++)
            most = of(&seen[r]->at[i]) > most ? of(&seen[r]->at[i]) : most;
    fprintf(f, "<text x=\"10\" y=\"%d\">%s</text><text x=\"10\" y=\"%d\">0 to %.0f</text>\n",
            top + 14, name, top + 30, most);
    fprintf(f,
            "<rect x=\"130\" y=\"%d\" width=\"720\" height=\"120\" fill=\"none\" "
            "stroke=\"#ccc\"/>\n",
            top);
    for (int r = last; r >= first; r--) {
        fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.3\" points=\"",
                colours[r]);
        for (int i = 0; i < SAMPLES; i++)
            fprintf(f, "%d,%.1f ", 130 + i, top + 119 - 117 * of(&seen[r]->at[i]) / most);
        fprintf(f, "\"/>\n");
    }
}

static double arrivals_of(const sample *s)
{
    return s->arrivals;
}

static double backlog_of(const sample *s)
{
    return s->backlog_s;
}

static double workers_of(const sample *s)
{
    return s->workers;
}

static double waiting_of(const sample *s)
{
    return s->waiting;
}

static double late_of(const sample *s)
{
    return s->late;
}

int autoscale_draw(const char *path, const autoscale_samples *const seen[N_RULES], int n_fixed)
{
    FILE *f = fopen(path, "w");

    if (!f)
        return 2;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"870\" height=\"760\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n"
            "<rect width=\"870\" height=\"760\" fill=\"#fff\"/>\n"
            "<text x=\"10\" y=\"20\" font-size=\"14\">A day of bursty load, simulated: "
            "<tspan fill=\"#0072b2\">seconds of work (keda-push)</tspan>, "
            "<tspan fill=\"#009e73\">without deadlines</tspan>, "
            "<tspan fill=\"#d55e00\">number of jobs (keda)</tspan>, "
            "<tspan fill=\"#888\">%d workers</tspan></text>\n",
            n_fixed);
    panel(f, 40, "jobs that come", seen, 0, 0, arrivals_of);
    panel(f, 180, "backlog, s", seen, 0, 0, backlog_of);
    panel(f, 320, "workers", seen, 0, N_RULES - 1, workers_of);
    panel(f, 460, "jobs that wait", seen, 0, N_RULES - 1, waiting_of);
    panel(f, 600, "jobs late", seen, 0, N_RULES - 1, late_of);
    for (int h = 0; h <= 24; h += 3)
        fprintf(f, "<text x=\"%d\" y=\"740\" text-anchor=\"middle\">%d:00</text>\n", 130 + 30 * h,
                h);
    fprintf(f, "</svg>\n");
    return fclose(f) ? 2 : 0;
}
