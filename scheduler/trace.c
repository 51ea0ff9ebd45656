#include "scheduler/trace.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

/* A call that ends so was failed by the server. (OpenTelemetry's semantic conventions for gRPC,
 * "Status", server spans.) */
static bool is_fault(const char *code)
{
    static const char *const faults[] = {"UNKNOWN",  "DEADLINE_EXCEEDED", "UNIMPLEMENTED",
                                         "INTERNAL", "UNAVAILABLE",       "DATA_LOSS"};

    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (strcmp(code, faults[i]) == 0)
            return true;
    return false;
}

void pseg_scheduler_trace_on_ended(pseg_trace *t, const pseg_rpc_ended *e)
{
    if (!t || !e->trace)
        return;
    const char *name = e->path + 1, *slash = strrchr(name, '/');
    int64_t now = pseg_clock_unix_us();
    char service[128];
    snprintf(service, sizeof service, "%.*s", slash ? (int)(slash - name) : 0, name);
    const pseg_span s = {.name = name,
                         .context = *e->trace,
                         .parent = e->trace_parent,
                         .kind = PSEG_SPAN_SERVER,
                         .begin_unix_us = now - e->us,
                         .end_unix_us = now,
                         .fault = is_fault(e->code) ? e->code : NULL,
                         .notes = {{"rpc.system", "grpc", 0},
                                   {"rpc.service", service, 0},
                                   {"rpc.method", slash ? slash + 1 : name, 0},
                                   {"rpc.response.status_code", e->code, 0},
                                   {"pseg.tenant", e->tenant, 0}}};
    pseg_trace_tell(t, &s, 1);
}
