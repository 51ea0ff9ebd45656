#include "scheduler/side.h"
#include "common/base/file.h"
#include "pseg/descriptors.h"

#include <stdio.h>
#include <string.h>

void pseg_side_address(char out[256], const char *listen, int port)
{
    snprintf(out, 256, "%s", listen);
    if (port > 0 && strrchr(out, ':'))
        snprintf(strrchr(out, ':'), 8, ":%d", port);
}

pseg_status pseg_side_open(pseg_rpc_server **out, const pseg_side_options *side,
                           const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_server_options o = PSEG_RPC_SERVER_OPTIONS_DEFAULT;
    char address[256];
    int port = 0;

    o.log = log;
    o.max_live_calls = 100;
    o.max_message_bytes = 1 << 16;
    o.max_memory_bytes = 32 << 20;
    o.first_message_ms = side->first_message_ms;
    o.idle_ms = side->idle_ms;
    if (strncmp(side->listen, "unix:", 5) != 0) {
        o.cert_file = side->cert_file;
        o.key_file = side->key_file;
        o.client_ca_file = side->client_ca_file;
    }
    o.descriptors = pseg_descriptors_begin;
    o.descriptors_len = (size_t)(pseg_descriptors_end - pseg_descriptors_begin);
    if (side->auth && side->auth->keys) {
        o.authorize = pseg_auth_check;
        o.authorize_ud = side->auth;
    }
    PSEG_TRY(pseg_rpc_server_new(out, &o, err));
    PSEG_TRY(pseg_rpc_server_add(*out, side->methods, side->ud, err));
    PSEG_TRY(pseg_rpc_server_listen(*out, side->listen, &port, err));
    PSEG_TRY(pseg_rpc_server_start(*out, err));
    pseg_rpc_server_set_serving(*out, "", true);
    pseg_rpc_server_set_serving(*out, side->service, true);
    pseg_side_address(address, side->listen, port);
    PSEG_INFO(log, "scheduler", "%s listen=%s", side->name, address);
    if (side->ready_file)
        PSEG_TRY(pseg_file_write(side->ready_file, address, strlen(address), err));
out:
    return rc;
}
