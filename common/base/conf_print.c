/* What a program tells about its options: help, Markdown, the values in force. */
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/conf_impl.h"
#include "common/base/version.h"

#include <ctype.h>
#include <string.h>

bool pseg_conf_has_range(const pseg_conf_option *o)
{
    return o->max > o->min;
}

const char *pseg_conf_flag(const pseg_conf_option *o, char out[80])
{
    snprintf(out, 80, "--%s", o->name);
    for (char *p = out + 2; *p; p++)
        if (*p == '_')
            *p = '-';
    return out;
}

const char *pseg_conf_variable(const pseg_conf_option *o, char out[80])
{
    snprintf(out, 80, "PSEG_%s", o->name);
    for (char *p = out; *p; p++)
        *p = (char)toupper((unsigned char)*p);
    return out;
}

enum { HELP_COLUMN = 35, LAST_COLUMN = 100 };

/* Words from column *at on, wrapped into the column of the help. */
static void print_words(FILE *f, size_t *at, const char *text)
{
    for (size_t n; *text; text += n + strspn(text + n, " ")) {
        n = strcspn(text, " ");
        if (*at > HELP_COLUMN && *at + 1 + n > LAST_COLUMN) {
            fprintf(f, "\n%*s", HELP_COLUMN, "");
            *at = HELP_COLUMN;
        }
        *at += (size_t)fprintf(f, "%s%.*s", *at > HELP_COLUMN ? " " : "", (int)n, text);
    }
}

void pseg_conf_print_help(FILE *f, const pseg_conf_option *table)
{
    char flag[80], left[160], value_default[256];

    for (const pseg_conf_option *o = table; o->name; o++) {
        const char *value = o->type == PSEG_CONF_BOOL   ? ""
                            : o->unit                   ? o->unit
                            : o->type == PSEG_CONF_INT  ? "N"
                            : o->type == PSEG_CONF_REAL ? "X"
                                                        : "TEXT";
        size_t at = HELP_COLUMN;
        if (o->letter)
            snprintf(left, sizeof left, "-%c, %s %s", o->letter, pseg_conf_flag(o, flag), value);
        else
            snprintf(left, sizeof left, "    %s %s", pseg_conf_flag(o, flag), value);
        if (fprintf(f, "  %-32s ", left) > HELP_COLUMN) /* too long to stand beside its help */
            fprintf(f, "\n%*s", HELP_COLUMN, "");
        print_words(f, &at, o->help ? o->help : "");
        snprintf(value_default, sizeof value_default, "[%s]",
                 o->value_default ? o->value_default : "");
        if (o->value_default && *o->value_default && o->type != PSEG_CONF_BOOL)
            print_words(f, &at, value_default);
        fputc('\n', f);
    }
}

/* A cell of a Markdown table: a bar would end it. */
static void print_cell(FILE *f, const char *text)
{
    for (; *text; text++)
        fprintf(f, "%s%c", *text == '|' ? "\\" : "", *text);
}

void pseg_conf_print_markdown(FILE *f, const pseg_conf_option *table)
{
    char flag[80], variable[80];
    bool has_file = false;

    for (const pseg_conf_option *o = table; o->name; o++)
        has_file = has_file || strcmp(o->name, "config") == 0;
    fprintf(f, "| option | variable |%s default | range | meaning |\n|---|---|%s---|---|---|\n",
            has_file ? " in a file |" : "", has_file ? "---|" : "");
    for (const pseg_conf_option *o = table; o->name; o++) {
        fprintf(f, "| `%s`", pseg_conf_flag(o, flag));
        if (o->letter)
            fprintf(f, ", `-%c`", o->letter);
        fprintf(f, " | `%s` | ", pseg_conf_variable(o, variable));
        if (has_file && strcmp(o->name, "config") != 0)
            fprintf(f, "`%s` | ", o->name);
        else if (has_file)
            fputs("| ", f);
        if (o->value_default && *o->value_default)
            fprintf(f, "`%s`", o->value_default);
        fputs(" | ", f);
        if (pseg_conf_has_range(o))
            fprintf(f, "%.15g to %.15g%s", o->min, o->max, o->unit ? " " : "");
        else if (o->type == PSEG_CONF_BOOL)
            fputs("true, false", f);
        fprintf(f, "%s | ", o->unit ? o->unit : "");
        print_cell(f, o->help ? o->help : "");
        fputs(" |\n", f);
    }
}

bool pseg_conf_answer(const pseg_conf *c, FILE *f, const pseg_conf_about *about)
{
    if (c->question == VERSION)
        fprintf(f, "%s " PSEG_VERSION "\n", about->name);
    if (c->question == MARKDOWN) {
        fprintf(f, "## %s\n\n%s\n\n", about->name, about->what);
        if (about->example)
            fprintf(f, "```sh\n%s\n```\n\n", about->example);
        pseg_conf_print_markdown(f, c->table);
    }
    if (c->question == HELP) {
        const char *usage = about->usage, *head = "usage:";
        for (size_t n; *usage; usage += n + (usage[n] == '\n'), head = "      ") {
            n = strcspn(usage, "\n");
            fprintf(f, "%s %s %.*s\n", head, about->name, (int)n, usage);
        }
        fprintf(f, "\n%s\n", about->what);
        const char *line = about->example ? about->example : "";
        for (size_t n; *line; line += n + (line[n] == '\n')) {
            n = strcspn(line, "\n");
            fprintf(f, "%s  %.*s\n", line == about->example ? "\n" : "", (int)n, line);
        }
        fputs("\noptions:\n", f);
        pseg_conf_print_help(f, c->table);
        if (about->after)
            fprintf(f, "\n%s\n", about->after);
    }
    return c->question != NO_QUESTION;
}

static pseg_status describe_value(pseg_buf *b, const pseg_conf_option *o, const char *at)
{
    switch (o->type) {
    case PSEG_CONF_STRING: {
        const char *s = *(const char *const *)(const void *)at;
        return pseg_buf_printf(b, NULL, "%s", !s ? "" : o->is_secret ? "***" : s);
    }
    case PSEG_CONF_INT:
        return pseg_buf_printf(b, NULL, "%lld", (long long)*(const int64_t *)(const void *)at);
    case PSEG_CONF_REAL:
        return pseg_buf_printf(b, NULL, "%.15g", *(const double *)(const void *)at);
    case PSEG_CONF_BOOL:
        return pseg_buf_puts(b, *(const bool *)(const void *)at ? "true" : "false", NULL);
    case PSEG_CONF_LIST: {
        const pseg_conf_list *l = (const pseg_conf_list *)(const void *)at;
        pseg_status rc = PSEG_OK;
        for (size_t i = 0; i < l->n && rc == PSEG_OK; i++)
            rc = pseg_buf_printf(b, NULL, "%s%s", i ? "," : "", o->is_secret ? "***" : l->items[i]);
        return rc;
    }
    }
    return PSEG_OK;
}

char *pseg_conf_describe(const pseg_conf *c)
{
    pseg_buf b;
    pseg_status rc = PSEG_OK;

    pseg_buf_init(&b, 1 << 20);
    for (size_t i = 0; i < c->n_options && rc == PSEG_OK; i++) {
        rc = pseg_buf_printf(&b, NULL, "%s%s=", i ? " " : "", c->table[i].name);
        if (rc == PSEG_OK)
            rc = describe_value(&b, &c->table[i], (const char *)c->target + c->table[i].offset);
    }
    if (rc != PSEG_OK)
        pseg_buf_deinit(&b);
    return (char *)pseg_buf_take(&b, NULL);
}
