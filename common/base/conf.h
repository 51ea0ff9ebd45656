/* Configuration: one table per program drives flags, environment, file, help and docs/config.md.
 *
 * Precedence: flag, environment, file, default. The flag of option "redis_url" is --redis-url, its
 * variable PSEG_REDIS_URL, its line in a file `redis_url = ...`. Unknown names are errors, and so
 * are values out of range. This is the only module that reads the environment.
 *
 *     struct { const char *listen; int64_t port; bool verbose; } c;
 *     static const pseg_conf_option table[] = {
 *         {"listen", PSEG_CONF_STRING, offsetof(.., listen), "127.0.0.1:7433", .help = "..."},
 *         {"port", PSEG_CONF_INT, offsetof(.., port), "0", .min = 0, .max = 65535, .help = "..."},
 *         {0}};
 *     pseg_conf *conf;
 *     pseg_conf_parse(&conf, &c, table, argc, argv, &err);   // strings are borrowed until free
 *     if (pseg_conf_answer(conf, stdout, &about))            // --help and the like
 *         return 0;
 */
#ifndef PSEG_BASE_CONF_H
#define PSEG_BASE_CONF_H

#include "common/base/err.h"

#include <stdint.h>
#include <stdio.h>

typedef enum pseg_conf_type {
    PSEG_CONF_STRING, /* const char *; NULL if the default is NULL */
    PSEG_CONF_INT,  /* int64_t; suffixes k, M, G (powers of 1024) and, where `unit` is "ms", s and m
                     */
    PSEG_CONF_REAL, /* double */
    PSEG_CONF_BOOL, /* bool; the flag alone means true, --no-NAME false */
    PSEG_CONF_LIST, /* pseg_conf_list: the flag may be given again and again */
} pseg_conf_type;

typedef struct pseg_conf_list {
    const char **items; /* n strings */
    size_t n;
} pseg_conf_list;

typedef struct pseg_conf_option {
    const char *name; /* lower_snake; NULL ends the table */
    pseg_conf_type type;
    size_t offset; /* of the member in the target struct */
    const char *value_default;
    const char *unit; /* "ms", "bytes", "FILE"...: shown in the help */
    double min, max;  /* inclusive, for INT and REAL, when max > min */
    const char *help; /* one line */
    char letter;      /* short flag, or 0 */
    bool is_secret;   /* never printed */
} pseg_conf_option;

typedef struct pseg_conf pseg_conf;

/* argv[1..] holds flags and positional arguments; "--" ends the flags. A table with an option
 * "config" of type STRING names the file to read. *out and its strings live until pseg_conf_free,
 * also when parsing fails. Errors: PSEG_R_CONFIG_INVALID, PSEG_R_FILE_NOT_FOUND. */
pseg_status pseg_conf_parse(pseg_conf **out, void *target, const pseg_conf_option *table, int argc,
                            char **argv, pseg_err *err);
void pseg_conf_free(pseg_conf *c);

/* Positional arguments, in order. */
size_t pseg_conf_n_args(const pseg_conf *c);
const char *pseg_conf_arg(const pseg_conf *c, size_t i);
/* What a program tells about itself; every text ends without a line break. */
typedef struct pseg_conf_about {
    const char *name;    /* "pseg run" */
    const char *usage;   /* what follows the name, one form a line */
    const char *what;    /* what it does: the first line is a sentence of its own */
    const char *example; /* lines for a shell, or NULL */
    const char *after;   /* behind the options, or NULL */
} pseg_conf_about;

/* --help, -h, --version or --help-markdown was given (parsing then succeeds whatever else is
 * there): writes what was asked for to f and returns true; the program then ends with status 0.
 * --help-markdown is a section of docs/config.md. */
bool pseg_conf_answer(const pseg_conf *c, FILE *f, const pseg_conf_about *about);
/* Was the option given by flag, environment or file? */
bool pseg_conf_is_set(const pseg_conf *c, const char *name);

/* The options as help text, one per line, aligned. */
void pseg_conf_print_help(FILE *f, const pseg_conf_option *table);
/* The same as a Markdown table: flag, variable, name in a file (where the table has an option
 * "config"), default, range, meaning. */
void pseg_conf_print_markdown(FILE *f, const pseg_conf_option *table);
/* "name=value name=value ..." of what is in force, secrets as "***"; caller frees with pseg_free.
 */
char *pseg_conf_describe(const pseg_conf *c);

/* How many characters must change to make `name` of word[0..n), - and _ being alike; a beginning of
 * `name` counts as 1. SIZE_MAX: too different to be a slip of it. */
size_t pseg_conf_slip(const char *word, size_t n, const char *name);

/* The environment, for the few modules that must look at a variable which is not an option. */
const char *pseg_conf_env(const char *name);

#endif
