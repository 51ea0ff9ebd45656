/* pseg key: makes bearer keys, and tells whose a key is by a file of them. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/keyfile.h"

#include <stdio.h>
#include <string.h>

typedef struct args {
    cli cli; /* no connection: json and key alone */
    const char *keys;
} args;

static const pseg_conf_option key_options[] = {
    {"keys", PSEG_CONF_STRING, offsetof(args, keys), NULL, .unit = "FILE",
     .help = "the scheduler's file of keys; new: the line is added to it"},
    {"key", PSEG_CONF_STRING, offsetof(args, cli.key), NULL, .unit = "TEXT", .is_secret = true,
     .help = "check: the key; better as PSEG_KEY or, as -, on standard input"},
    {"json", PSEG_CONF_BOOL, offsetof(args, cli.json), "false", .help = "print JSON"},
    {0}};

static pseg_status new_key(args *a, const char *tenant, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t digest[PSEG_SHA256_BYTES];
    char key[PSEG_KEY_BYTES], hash[PSEG_SHA256_HEX + 1];

    if (!tenant || !pseg_is_tenant(tenant))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "tenant \"%s\" must be 1 to 63 of a-z 0-9 _ - (pseg key new TENANT)",
                  tenant ? tenant : "");
    PSEG_TRY(pseg_key_new(key, err));
    pseg_sha256_of(digest, key, strlen(key));
    pseg_hex(hash, digest, sizeof digest);
    if (a->keys)
        PSEG_TRY(pseg_keyfile_add(a->keys, key, tenant, err));
    if (a->cli.json)
        print_json(&a->cli,
                   json_pack("{s:s, s:s, s:s}", "key", key, "sha256", hash, "tenant", tenant));
    else if (a->keys)
        puts(key);
    else
        printf("%s\n%s %s\n", key, hash, tenant);
out:
    return rc;
}

static pseg_status check_key(args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_keyfile file = {0};
    uint8_t *typed = NULL;
    size_t len;

    if (!a->keys)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--keys FILE is needed: the scheduler's file of keys");
    PSEG_TRY(pseg_keyfile_read(&file, a->keys, err));
    if (!a->cli.key) {
        if (a->cli.json)
            print_json(&a->cli, json_pack("{s:I}", "keys", (json_int_t)file.n));
        else
            printf("%zu key%s\n", file.n, file.n == 1 ? "" : "s");
        goto out;
    }
    if (strcmp(a->cli.key, "-") == 0) {
        PSEG_TRY(pseg_file_read(&typed, &len, "-", 4096, err));
        typed[strcspn((char *)typed, "\r\n")] = '\0';
    }
    const char *tenant = pseg_keyfile_tenant(&file, typed ? (char *)typed : a->cli.key);
    if (!tenant)
        PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0, "%s does not hold this key", a->keys);
    if (a->cli.json)
        print_json(&a->cli, json_pack("{s:s}", "tenant", tenant));
    else
        puts(tenant);
out:
    pseg_free(typed);
    pseg_keyfile_free(&file);
    return rc;
}

static int key_run(const command *self, int argc, char **argv)
{
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err error = PSEG_ERR_INIT, *err = &error;
    pseg_status rc = PSEG_OK;
    int status = 0;

    if (!cli_begin(&conf, &a, self, key_options, argc, argv, &status))
        return status;
    const char *what = pseg_conf_arg(conf, 0);
    if (what && strcmp(what, "new") == 0)
        PSEG_TRY(new_key(&a, pseg_conf_arg(conf, 1), err));
    else if (what && strcmp(what, "check") == 0 && !pseg_conf_arg(conf, 1))
        PSEG_TRY(check_key(&a, err));
    else
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "say `pseg key new TENANT` or `pseg key check`");
out:
    if (rc != PSEG_OK)
        status = cli_fail(&a.cli, err);
    pseg_conf_free(conf);
    return status;
}

const command key_command = {
    "key",
    {"pseg key", "new TENANT [--keys FILE] | check --keys FILE [--key -]",
     "Makes a bearer key, or tells whose it is.\n"
     "new prints the key and its line for the scheduler's --keys, or adds the line itself; the "
     "key\n"
     "is stored nowhere. check tells the tenant, or without a key how many the file holds.",
     "pseg key new my-team --keys /etc/pseg/keys",
     "Exit status: 0 good, 1 the key is not in the file, 2 a mistake, 3 no such file."},
    2,
    key_run};
