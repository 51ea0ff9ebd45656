/* Options, connection, errors. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/utf8.h"
#include "common/rpc/rpc.h"

#include <stdio.h>
#include <string.h>

/* Errors of parsing come before --json is known. */
static bool asks_for_json(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

bool cli_begin(pseg_conf **conf, void *target, const command *self, const pseg_conf_option *table,
               int argc, char **argv, int *status)
{
    pseg_status rc = PSEG_OK;
    pseg_err error = PSEG_ERR_INIT, *err = &error;
    bool answered = false;

    PSEG_TRY(pseg_conf_parse(conf, target, table, argc, argv, err));
    answered = pseg_conf_answer(*conf, stdout, &self->about);
    size_t n = pseg_conf_n_args(*conf);
    if (!answered && n > self->n_args)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "unexpected argument \"%s\" (--help shows the use)",
                  pseg_conf_arg(*conf, self->n_args));
out:
    *status = 0;
    if (rc != PSEG_OK) {
        cli c = {.json = asks_for_json(argc, argv)};
        *status = cli_fail(&c, err);
    }
    if (rc != PSEG_OK || answered) {
        pseg_conf_free(*conf);
        *conf = NULL;
        return false;
    }
    return true;
}

int cli_fail(cli *c, const pseg_err *err)
{
    if (c->json && !c->has_printed) {
        json_t *e =
            json_pack("{s:s, s:o, s:b}", "reason", pseg_reason_name(err->reason), "message",
                      json_text(err->msg), "retryable", (int)pseg_reason_is_retryable(err->reason));
        if (err->field[0])
            json_object_set_new(e, "field", json_text(err->field));
        print_json(c, json_pack("{s:o}", "error", e));
    }
    fprintf(stderr, "error: %s%s%s (%s)\n", err->field, err->field[0] ? ": " : "", err->msg,
            pseg_reason_name(err->reason));
    return pseg_reason_exit_status(err->reason);
}

pseg_status cli_dial(cli *c, pseg_err *err)
{
    pseg_rpc_channel_options o = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;

    pseg_rpc_init(NULL, NULL, NULL);
    o.target = c->server;
    o.use_tls = c->tls;
    o.ca_file = c->ca;
    o.cert_file = c->cert;
    o.key_file = c->cert_key;
    o.bearer = c->key;
    o.traceparent = c->traceparent;
    return pseg_rpc_dial(&c->channel, &o, err);
}

void cli_end(cli *c, pseg_conf *conf)
{
    if (c->channel) {
        pseg_rpc_hangup(c->channel);
        pseg_rpc_shutdown();
    }
    pseg_conf_free(conf);
}

pseg_status cli_call(ProtobufCMessage **reply, cli *c, const char *method,
                     const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
                     int64_t timeout_ms, pseg_err *err)
{
    char path[96];

    snprintf(path, sizeof path, "/pseg.v1.SegmentationService/%s", method);
    return pseg_rpc_unary(reply, c->channel, path, request, reply_type, timeout_ms, err);
}

json_t *json_text(const char *s)
{
    json_t *j = json_string(s);
    char *copy = j ? NULL : pseg_strdup(s);

    if (copy) {
        pseg_utf8_repair(copy);
        j = json_string(copy);
        pseg_free(copy);
    }
    return j;
}

void print_json(cli *c, json_t *j)
{
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(7));
    putchar('\n');
    json_decref(j);
    c->has_printed = true;
}
