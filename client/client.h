/* What the commands of `pseg` share: options of the connection, calls, printing.
 *
 * A command is one file with one function, entered in the table of main.c. */
#ifndef PSEG_CLIENT_CLIENT_H
#define PSEG_CLIENT_CLIENT_H

#include "common/base/conf.h"
#include "common/base/err.h"
#include "common/rpc/rpc_client.h"
#include "pseg/v1/pseg.pb-c.h"

#include <jansson.h>

/* Every command's options begin with these, and with those of the connection. */
typedef struct cli {
    const char *server, *ca, *cert, *cert_key, *key, *traceparent;
    bool tls, json;
    int64_t timeout_ms;
    pseg_rpc_channel *channel;
    bool has_printed; /* JSON stands on standard output: an error may not add a second document */
} cli;
#define CLI_CONNECTION                                                                           \
    {"server",         PSEG_CONF_STRING, offsetof(cli, server),                                  \
     "127.0.0.1:7433", .unit = "ADDR",   .help = "host:port or unix:/path of the scheduler"},    \
        {"tls", PSEG_CONF_BOOL, offsetof(cli, tls), "false",                                     \
         .help = "encrypt, by the system's authorities"},                                        \
        {"ca", PSEG_CONF_STRING, offsetof(cli, ca),                                              \
         NULL, .unit = "FILE",   .help = "encrypt, by these authorities (PEM)"},                 \
        {"cert", PSEG_CONF_STRING, offsetof(cli, cert),                                          \
         NULL,   .unit = "FILE",   .help = "our certificate (PEM)"},                             \
        {"cert_key", PSEG_CONF_STRING, offsetof(cli, cert_key),                                  \
         NULL,       .unit = "FILE",   .help = "its private key (PEM)"},                         \
        {"traceparent", PSEG_CONF_STRING, offsetof(cli, traceparent),                            \
         NULL,          .unit = "TEXT",   .help = "W3C trace context that the calls belong to"}, \
    {                                                                                            \
        "key", PSEG_CONF_STRING, offsetof(cli, key), NULL,                                       \
            .unit = "TEXT", .is_secret = true, .help = "bearer key; better as PSEG_KEY"          \
    }
#define CLI_OPTIONS                                                                                \
    CLI_CONNECTION,                                                                                \
        {"timeout_ms", PSEG_CONF_INT, offsetof(cli, timeout_ms), "5m",                             \
         .unit = "ms", .min = 1,      .max = 86400000,           .help = "for the whole command"}, \
    {                                                                                              \
        "json", PSEG_CONF_BOOL, offsetof(cli, json), "false", .help = "print JSON"                 \
    }

/* A job's options, after the connection's. */
typedef struct job_args {
    const char *image, *model, *request_id;
    pseg_conf_list prompts, labels;
    double threshold;
    int64_t deadline_ms, ttl_ms;
} job_args;
#define JOB_OPTIONS(type, member)                                                              \
    {"image",                                                                                  \
     PSEG_CONF_STRING,                                                                         \
     offsetof(type, member.image),                                                             \
     NULL,                                                                                     \
     .unit = "FILE",                                                                           \
     .letter = 'i',                                                                            \
     .help = "JPEG, PNG, WebP, TIFF or HEIC; - is standard input"},                            \
        {"prompt",                                                                             \
         PSEG_CONF_LIST,                                                                       \
         offsetof(type, member.prompts),                                                       \
         NULL,                                                                                 \
         .unit = "TEXT",                                                                       \
         .letter = 'p',                                                                        \
         .help = "what to find; may be given again"},                                          \
        {"model", PSEG_CONF_STRING, offsetof(type, member.model),                              \
         "",      .unit = "NAME",   .help = "model; empty: the server's default"},             \
        {"threshold",                                                                          \
         PSEG_CONF_REAL,                                                                       \
         offsetof(type, member.threshold),                                                     \
         "0.5",                                                                                \
         .min = 1e-6,                                                                          \
         .max = 0.999999,                                                                      \
         .help = "probability above which a pixel counts"},                                    \
        {"label", PSEG_CONF_LIST,      offsetof(type, member.labels),                          \
         NULL,    .unit = "KEY=VALUE", .help = "kept with the job; may be given again"},       \
        {"request_id", PSEG_CONF_STRING, offsetof(type, member.request_id),                    \
         NULL,         .unit = "ID",     .help = "makes repeating safe; random if not given"}, \
        {"deadline_ms",                                                                        \
         PSEG_CONF_INT,                                                                        \
         offsetof(type, member.deadline_ms),                                                   \
         "0",                                                                                  \
         .unit = "ms",                                                                         \
         .min = 0,                                                                             \
         .max = 604800000,                                                                     \
         .help = "not done by then: EXPIRED; 0: the server's longest"},                        \
    {                                                                                          \
        "ttl_ms", PSEG_CONF_INT, offsetof(type, member.ttl_ms), "0",                           \
            .unit = "ms", .min = 0, .max = 604800000,                                          \
            .help = "how long the result is kept; 0: the server's default"                     \
    }

typedef struct command {
    const char *word; /* "segment" */
    pseg_conf_about about;
    size_t n_args; /* positional arguments it takes at most */
    int (*run)(const struct command *self, int argc, char **argv);
} command;
extern const command segment_command, batch_command, submit_command, get_command, wait_command,
    cancel_command, list_command, models_command, quarantine_command, key_command, watch_command,
    top_command;

/* Behind the options of every command. */
#define CLI_AFTER                                                                               \
    "Exit status: 0 good, 2 a mistake in the input, 3 not found, 4 try again later, 5 the job " \
    "failed,\nwas cancelled or expired, 1 anything else. docs/command-line.md tells more."

/* Parses, or prints help or the error. false: the command ends with *status. */
bool cli_begin(pseg_conf **conf, void *target, const command *self, const pseg_conf_option *table,
               int argc, char **argv, int *status);
/* Prints the error in the form asked for and returns the exit status. */
int cli_fail(cli *c, const pseg_err *err);
pseg_status cli_dial(cli *c, pseg_err *err);
void cli_end(cli *c, pseg_conf *conf);

/* A call of the service by its short name. *reply is freed with pseg_rpc_message_free. */
pseg_status cli_call(ProtobufCMessage **reply, cli *c, const char *method,
                     const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
                     int64_t timeout_ms, pseg_err *err);

/* Sends image (inline or by upload) and prompts. Caller frees *job with pseg_rpc_message_free. */
pseg_status cli_create_job(Pseg__V1__Job **job, cli *c, const job_args *a, const uint8_t *image,
                           size_t len, pseg_err *err);
/* Larger images go by upload; the server's own limit is a little higher. */
#define CLI_INLINE_BYTES ((size_t)3 << 20)
/* Stores an image under its SHA-256 (64 digits and a NUL); one that is held is not sent again. With
 * shows, progress on standard error once it takes more than a second. Any thread. */
pseg_status cli_upload(cli *c, const char *sha256, const uint8_t *image, size_t len, bool shows,
                       pseg_err *err);
/* Until the job is terminal or the command's time is up (PSEG_R_DEADLINE_EXCEEDED); shows progress
 * on standard error once it takes more than a second. */
pseg_status cli_wait_job(Pseg__V1__Job **job, cli *c, const char *name, pseg_err *err);
/* PSEG_OK for SUCCEEDED; else the reason the job ended for. */
pseg_status cli_job_status(const Pseg__V1__Job *job, pseg_err *err);

/* One mask, whole. Caller frees *data with pseg_free. */
pseg_status cli_fetch_mask(uint8_t **data, size_t *len, Pseg__V1__Mask *head, cli *c,
                           const char *name, uint32_t index, Pseg__V1__MaskEncoding encoding,
                           float threshold, pseg_err *err);

/* Any bytes as a JSON string; what is not UTF-8 becomes '?'. */
json_t *json_text(const char *s);
json_t *json_of_job(const Pseg__V1__Job *job);
void print_json(cli *c, json_t *j); /* to standard output, and frees it */
void print_job(const Pseg__V1__Job *job);

#endif
