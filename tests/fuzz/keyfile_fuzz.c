/* Any bytes as a file of bearer keys. What is accepted names tenants, and a key that is added to it
 * is found again. */
#include "common/base/keyfile.h"
#include "tests/fuzz/fuzz_folder.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_folder_make();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_folder_write("keys", data, size);
    pseg_keyfile k = {0};
    pseg_err e = PSEG_ERR_INIT;
    pseg_status rc = pseg_keyfile_read(&k, path, &e);

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
