/* Shared by conf.c, which parses, and conf_print.c, which tells. */
#ifndef PSEG_BASE_CONF_IMPL_H
#define PSEG_BASE_CONF_IMPL_H

#include "common/base/arena.h"
#include "common/base/conf.h"

/* What was asked for in place of the program's work. */
enum { NO_QUESTION, HELP, MARKDOWN, VERSION };

struct pseg_conf {
    pseg_arena *arena;
    const pseg_conf_option *table;
    size_t n_options;
    void *target;
    unsigned char *source; /* one of FROM_* per option */
    const char **args;
    size_t n_args;
    int question;
};

bool pseg_conf_has_range(const pseg_conf_option *o);
/* "--redis-url" and "PSEG_REDIS_URL". Both return out. */
const char *pseg_conf_flag(const pseg_conf_option *o, char out[80]);
const char *pseg_conf_variable(const pseg_conf_option *o, char out[80]);

#endif
