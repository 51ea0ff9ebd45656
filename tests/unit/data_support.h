/* Files and sets that the tests of worker/data make. */
#ifndef TESTS_UNIT_DATA_SUPPORT_H
#define TESTS_UNIT_DATA_SUPPORT_H

#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/data/dataset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A fresh folder; removed with drop_folder. */
static inline char *make_folder(void)
{
    static char path[64];

    snprintf(path, sizeof path, "/tmp/pseg-data-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void drop_folder(const char *dir)
{
    char command[128];

    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

static inline const char *put_file(const char *dir, const char *name, const void *data, size_t n)
{
    static char path[512];
    pseg_err err = PSEG_ERR_INIT;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(pseg_file_write(path, data, n, &err), PSEG_OK);
    return path;
}

/* What was told of faults, one a line. */
typedef struct told {
    char text[65536];
    size_t n;
} told;

static inline void tell(void *ud, pseg_data_fault fault, const char *where, const char *what)
{
    told *t = ud;

    t->n += (size_t)snprintf(t->text + t->n, sizeof t->text - t->n, "%s %s: %s\n",
                             pseg_data_fault_name(fault), where, what);
}

#endif
