/* Options, connection, errors. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/version.h"
#include "common/rpc/rpc.h"

#include <stdio.h>
#include <string.h>

bool cli_begin(pseg_conf **conf, void *target, const command *self, const pseg_conf_option *table,
               int argc, char **argv, int *status)
{
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_conf_parse(conf, target, table, argc, argv, &err) != PSEG_OK) {
        *status = cli_fail(target, &err);
        pseg_conf_free(*conf);
        return false;
    }
    if (pseg_conf_wants_help(*conf)) {
        printf("usage: pseg %s %s\n\n%s\n\n", self->name, self->usage, self->help);
        pseg_conf_print_help(stdout, table);
        printf("\nExit status: 0 good, 2 a mistake in the input, 3 not found, 4 try again later, 5 "
               "the job failed,\n"
               "was cancelled or expired, 1 anything else.\n");
        *status = 0;
        pseg_conf_free(*conf);
        return false;
    }
    return true;
}

int cli_fail(const cli *c, const pseg_err *err)
{
    if (c->json) {
        json_t *j =
            json_pack("{s:{s:s, s:s, s:b}}", "error", "reason", pseg_reason_name(err->reason),
                      "message", err->msg, "retryable", (int)pseg_reason_is_retryable(err->reason));
        if (err->field[0])
            json_object_set_new(json_object_get(j, "error"), "field", json_string(err->field));
        print_json(j);
    }
    fprintf(stderr, "error: %s%s%s%s (%s)\n", err->field[0] ? err->field : "",
            err->field[0] ? ": " : "", err->msg, pseg_reason_is_retryable(err->reason) ? "" : "",
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

void print_json(json_t *j)
{
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(7));
    putchar('\n');
    json_decref(j);
}
