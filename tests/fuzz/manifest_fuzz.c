/* Any bytes as a manifest of `pseg batch`; the first one says of which form. What becomes a plan
 * has items that can be sent, or say why not. */
#include "client/batch/json.h"
#include "client/batch/plan.h"
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

static void check(const json_t *item)
{
    const json_t *prompts = json_object_get(item, "prompts");
    const char *reason = batch_json_get(item, "reason");

    if (json_integer_value(json_object_get(item, "line")) < 1)
        abort();
    if (*reason) {
        if (pseg_reason_from_name(reason) == PSEG_R_NONE || !*batch_json_get(item, "message"))
            abort();
        return;
    }
    if (!*batch_json_get(item, "image") || json_array_size(prompts) < 1 ||
        json_array_size(prompts) > BATCH_MAX_PROMPTS)
        abort();
    for (size_t i = 0; i < json_array_size(prompts); i++)
        if (!json_is_string(json_array_get(prompts, i)))
            abort();
    const json_t *categories = json_object_get(item, "categories");
    if (categories && json_array_size(categories) != json_array_size(prompts))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const batch_form forms[] = {BATCH_JSONL, BATCH_CSV, BATCH_TSV, BATCH_COCO};
    const char *prompt = "a dog";
    pseg_err e = PSEG_ERR_INIT;
    batch_plan *p = NULL;
    json_t *item;

    if (size == 0)
        return 0;
    const char *path = fuzz_folder_write("manifest", data + 1, size - 1);
    batch_source s = {&path, 1, forms[(data[0] - 1) & 3], {&prompt, data[0] & 0x80 ? 1 : 0}};
    pseg_status rc = batch_plan_make(fuzz_folder, &s, &e);
    if (rc != PSEG_OK && (rc > 0 || !e.msg[0] || strchr(e.msg, '\n')))
        abort();
    if (rc == PSEG_OK) {
        if (batch_plan_open(&p, fuzz_folder, &e) != PSEG_OK || batch_plan_items(p) == 0)
            abort();
        for (uint64_t i = 1; i <= batch_plan_items(p); i++) {
            if (batch_plan_get(&item, p, i, &e) != PSEG_OK)
                abort();
            check(item);
            json_decref(item);
        }
        batch_plan_close(p);
    }
    batch_plan_remove(fuzz_folder);
    return 0;
}
