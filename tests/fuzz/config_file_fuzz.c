/* Any bytes as a configuration file (--config), and their lines as arguments. What is accepted is
 * in range, and describes itself without secrets. */
#include "common/base/alloc.h"
#include "common/base/conf.h"
#include "common/base/utf8.h"
#include "tests/fuzz/fuzz_files.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct target {
    const char *config, *name, *key;
    int64_t size, wait_ms;
    double ratio;
    bool verbose;
    pseg_conf_list tags;
};

static const pseg_conf_option table[] = {
    {"config", PSEG_CONF_STRING, offsetof(struct target, config), NULL, .unit = "FILE"},
    {"name", PSEG_CONF_STRING, offsetof(struct target, name), "anon", .letter = 'n'},
    {"secret_key", PSEG_CONF_STRING, offsetof(struct target, key), NULL, .is_secret = true},
    {"size", PSEG_CONF_INT, offsetof(struct target, size), "4k", .min = 1, .max = 1 << 20},
    {"wait_ms", PSEG_CONF_INT, offsetof(struct target, wait_ms), "2s", .unit = "ms"},
    {"ratio", PSEG_CONF_REAL, offsetof(struct target, ratio), "0.5", .min = 0, .max = 1},
    {"verbose", PSEG_CONF_BOOL, offsetof(struct target, verbose), "false"},
    {"tag", PSEG_CONF_LIST, offsetof(struct target, tags), NULL},
    {0}};

static void parse(int argc, char **argv)
{
    struct target t = {0};
    pseg_conf *c = NULL;
    pseg_err e = PSEG_ERR_INIT;
    pseg_status rc = pseg_conf_parse(&c, &t, table, argc, argv, &e);

    if (rc != PSEG_OK && (rc > 0 || e.code != rc || !e.msg[0] || strchr(e.msg, '\n') ||
                          !pseg_utf8_is_valid(e.msg, strlen(e.msg))))
        abort();
    if (rc == PSEG_OK) {
        char *text = pseg_conf_describe(c);
        if (!(t.size >= 1 && t.size <= 1 << 20) || !(t.ratio >= 0 && t.ratio <= 1))
            abort();
        if (text && t.key && strlen(t.key) > 20 && strstr(text, t.key))
            abort();
        for (size_t i = 0; i < t.tags.n; i++)
            if (!t.tags.items[i])
                abort();
        pseg_free(text);
    }
    pseg_conf_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[4096];
    static char flag[] = "--config=" FUZZ_FILES "/file.conf";
    char *argv[65] = {(char[]){"prog"}};
    int argc = 1;

    fuzz_files_set("file.conf", data, size);
    argv[1] = flag;
    parse(2, argv);
    if (size >= sizeof text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *line = text; line && argc < 64;) {
        char *end = strchr(line, '\n');
        if (end)
            *end++ = '\0';
        /* Other files than ours are not the target's business. */
        if (strncmp(line, "--config", 8) != 0)
            argv[argc++] = line;
        line = end;
    }
    argv[argc] = NULL;
    parse(argc, argv);
    return 0;
}
