/* pseg.json, and what changes of an encoder's config.json, of a folder that is made here. */
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "worker/model/config.h"

#include <jansson.h>

static int append(const char *text, size_t n, void *ud)
{
    return pseg_buf_append(ud, text, n, NULL) == PSEG_OK ? 0 : -1;
}

/* j as the text of path; its last part, name, is for messages. */
static pseg_status write_json(const json_t *j, const char *path, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf b;

    pseg_buf_init(&b, (size_t)1 << 20);
    if (json_dump_callback(j, append, &b, JSON_INDENT(2)) != 0 ||
        pseg_buf_puts(&b, "\n", NULL) != PSEG_OK)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", name);
    PSEG_TRY(pseg_file_write(path, b.data, b.len, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}

pseg_status pseg_folder_write(const pseg_folder *f, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(folder, "pseg.json");
    json_t *j =
        json_pack("{s:s, s:s, s:s, s:s, s:s}", "name", f->name, "description", f->description,
                  "vision", f->vision, "text", f->text, "decoder", f->decoder);

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for pseg.json");
    if (!j)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s: a name or path that is not UTF-8 cannot be written to pseg.json", folder);
    PSEG_TRY(write_json(j, path, "pseg.json", err));
out:
    json_decref(j);
    pseg_free(path);
    return rc;
}

pseg_status pseg_vit_config_set_size(const char *folder, uint32_t height, uint32_t width,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(folder, "config.json");
    json_t *j = NULL;
    json_error_t why;

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for config.json");
    j = json_load_file(path, 0, &why);
    if (!json_is_object(j))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s", path, j ? "no object" : why.text);
    json_t *size =
        height == width ? json_integer(height) : json_pack("[i,i]", (int)height, (int)width);
    if (json_object_set_new(j, "image_size", size) != 0)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for config.json");
    PSEG_TRY(write_json(j, path, "config.json", err));
out:
    json_decref(j);
    pseg_free(path);
    return rc;
}
