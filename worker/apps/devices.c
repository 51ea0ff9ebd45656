/* pseg-devices: what OpenCL offers here. */
#include "common/base/alloc.h"
#include "worker/apps/program.h"
#include "worker/cl/device.h"

#include <stdio.h>

typedef struct args {
    const char *device;
    bool json;
} args;

static const pseg_conf_option options[] = {
    {"device", PSEG_CONF_STRING, offsetof(args, device), "auto", .unit = "NAME", .letter = 'd',
     .help = "mark the device that this would choose"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

static const struct {
    pseg_cl_feature bit;
    const char *name;
} features[] = {{PSEG_CL_AVX512_BF16, "avx512_bf16"}, {PSEG_CL_AMX_BF16, "amx_bf16"}};
enum { N_FEATURES = sizeof features / sizeof *features };

static json_t *json_of(const pseg_device_info *d, bool chosen)
{
    json_t *names = json_array();

    for (size_t i = 0; i < N_FEATURES; i++)
        if (d->features & features[i].bit)
            json_array_append_new(names, json_string(features[i].name));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:I, s:I, s:b, s:o}", "id",
                     d->id, "type", pseg_device_type_name(d->type), "name", d->name, "vendor",
                     d->vendor, "driver", d->driver, "version", d->version, "platform",
                     d->platform_version, "compute_units", (int)d->compute_units, "clock_mhz",
                     (int)d->clock_mhz, "memory_bytes", (json_int_t)d->mem_bytes, "max_alloc_bytes",
                     (json_int_t)d->max_alloc_bytes, "local_bytes", (json_int_t)d->local_bytes,
                     "chosen", (int)chosen, "instructions", names);
}

static pseg_status run(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_device_info *list = NULL;
    json_t *all = json_array();
    size_t n = 0, chosen = 0;

    PSEG_TRY(pseg_device_list(&list, &n, err));
    PSEG_TRY(pseg_device_select(&chosen, list, n, a->device, err));
    for (size_t i = 0; i < n; i++) {
        const pseg_device_info *d = &list[i];
        json_array_append_new(all, json_of(d, i == chosen));
        if (a->json)
            continue;
        printf("%s %s  %-4s %s\n       %s, driver %s, %u units, %.1f GiB", i == chosen ? "*" : " ",
               d->id, pseg_device_type_name(d->type), d->name, d->platform_version, d->driver,
               d->compute_units, (double)d->mem_bytes / (1 << 30));
        for (size_t k = 0; k < N_FEATURES; k++)
            if (d->features & features[k].bit)
                printf(", %s", features[k].name);
        puts("");
    }
    if (a->json)
        program_print(json_pack("{s:O}", "devices", all));
    else
        puts("* is taken by default; choose with --device ID, type or part of a name");
out:
    json_decref(all);
    pseg_free(list);
    return rc;
}

int main(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg devices",
        .usage = "[--device NAME] [--json]",
        .what = "Lists the OpenCL devices of this machine.",
        .example = "pseg devices\n"
                   "pseg devices --device gpu    # which one `--device gpu` would take"};
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (program_begin(&conf, &a, options, &about, argc, argv, &status))
        status = program_end(run(&a, &err), &err, a.json);
    pseg_conf_free(conf);
    return status;
}
