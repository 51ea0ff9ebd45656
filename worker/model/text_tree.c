#include "worker/model/text_tree.h"
#include "common/base/alloc.h"

pseg_status pseg_text_tree_init(pseg_text_tree *t, uint32_t max_rows, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int32_t **const arrays[] = {&t->token, &t->position, &t->back, &t->child, &t->sibling};

    *t = (pseg_text_tree){.max = max_rows};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        *arrays[i] = pseg_calloc(max_rows, sizeof **arrays[i]);
        if (!*arrays[i])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the text encoder");
    }
out:
    return rc;
}

void pseg_text_tree_deinit(pseg_text_tree *t)
{
    pseg_free(t->token);
    pseg_free(t->position);
    pseg_free(t->back);
    pseg_free(t->child);
    pseg_free(t->sibling);
    *t = (pseg_text_tree){0};
}

void pseg_text_tree_clear(pseg_text_tree *t)
{
    t->n = 0;
}

pseg_status pseg_text_tree_add(int32_t *rows, pseg_text_tree *t, const int32_t *ids, uint32_t n,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t i = 0; i < n; i++) {
        int32_t parent = i ? rows[i - 1] : 0;
        int32_t *link = i ? &t->child[parent] : NULL;
        int32_t row = i ? *link : 0;

        for (; i && row && t->token[row] != ids[i]; row = *link)
            link = &t->sibling[row];
        if (i ? !row : t->n == 0) {
            PSEG_REQUIRE(t->n < t->max, "rows of the tree");
            row = (int32_t)t->n++;
            t->token[row] = ids[i];
            t->position[row] = (int32_t)i;
            t->back[row] = i ? row - parent : 0;
            t->child[row] = t->sibling[row] = 0;
            if (link)
                *link = row;
        }
        PSEG_REQUIRE(t->token[row] == ids[i], "phrases that begin alike");
        rows[i] = row;
    }
out:
    return rc;
}
