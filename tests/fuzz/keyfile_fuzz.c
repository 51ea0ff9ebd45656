/* Any bytes as a file of bearer keys. What is accepted names tenants, and a key that is added to it
 * is found again. */
#include "common/base/keyfile.h"
#include "tests/fuzz/fuzz_files.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pseg_keyfile k = {0};
    pseg_err e = PSEG_ERR_INIT;

    fuzz_files_set("keys", data, size);
    pseg_status rc = pseg_keyfile_read(&k, FUZZ_FILES "/keys", &e);

    if (rc != PSEG_OK && (rc > 0 || k.keys || k.n || !e.msg[0] || strchr(e.msg, '\n')))
        abort();
    if (rc == PSEG_OK && k.n == 0)
        abort();
    for (size_t i = 0; i < k.n; i++)
        if (!pseg_is_tenant(k.keys[i].tenant))
            abort();
    if (rc == PSEG_OK && pseg_keyfile_tenant(&k, "no such key"))
        abort();
    pseg_keyfile_free(&k);
    return 0;
}
