/* What the programs behind `pseg` share, so that they answer as its own commands do: options, help,
 * errors, JSON, progress. The forms are described in docs/command-line.md. */
#ifndef PSEG_APPS_PROGRAM_H
#define PSEG_APPS_PROGRAM_H

#include "common/base/conf.h"
#include "common/base/err.h"

#include <jansson.h>

/* Parses; positional arguments are refused. false: help or an error was printed, *conf is NULL and
 * the program ends with *status. Else the caller frees *conf with pseg_conf_free. */
bool program_begin(pseg_conf **conf, void *target, const pseg_conf_option *table,
                   const pseg_conf_about *about, int argc, char **argv, int *status);
/* The same, but positional arguments are the program's to look at. */
bool program_begin_with(pseg_conf **conf, void *target, const pseg_conf_option *table,
                        const pseg_conf_about *about, int argc, char **argv, int *status);
/* One line on standard error and, if `json`, {"error": {...}} on standard output. Returns the exit
 * status. */
int program_fail(const pseg_err *err, bool json);
/* The last call: the exit status, given what the program came to. Lost output is status 1. */
int program_end(pseg_status rc, const pseg_err *err, bool json);

/* To standard output, and frees it. */
void program_print(json_t *j);
/* Any bytes as a JSON string; what is not UTF-8 becomes '?'. */
json_t *program_text(const char *s);

/* A line on standard error that tells the stage and its seconds, where that is a terminal and the
 * work has taken more than a second. begin starts a thread, and does nothing where it cannot. */
typedef struct program_progress program_progress;
program_progress *program_progress_begin(const char *stage);
void program_progress_stage(program_progress *p, const char *stage); /* static text */
void program_progress_end(program_progress *p);                      /* NULL is accepted */

#endif
