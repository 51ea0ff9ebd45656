/* grpc.reflection v1 and v1alpha, which have one wire form: one handler, two paths. */
#include "common/rpc/descriptors.h"
#include "common/rpc/internal.h"

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc/reflection/v1alpha/reflection.pb-c.h"

#include <string.h>

typedef Grpc__Reflection__V1__ServerReflectionRequest request;
typedef Grpc__Reflection__V1__ServerReflectionResponse response;

#define ASKED(x)  GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##x
#define ANSWER(x) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##x

enum { CODE_INVALID_ARGUMENT = 3, CODE_NOT_FOUND = 5, CODE_OUT_OF_MEMORY = 8 };

/* An answer under construction; everything lies in `arena`, which ends with it. */
typedef struct answer {
    pseg_arena *arena;
    const pseg_rpc_descriptors *d;
    response r;
} answer;

static void say_error(answer *a, int code, const char *text)
{
    Grpc__Reflection__V1__ErrorResponse *e = pseg_arena_alloc(a->arena, sizeof *e);

    if (!e)
        return;
    grpc__reflection__v1__error_response__init(e);
    e->error_code = code;
    e->error_message = (char *)text;
    a->r.message_response_case = ANSWER(ERROR_RESPONSE);
    a->r.error_response = e;
}

/* A file and all it imports, each once, the file first. */
static void collect(const pseg_rpc_descriptors *d, const pseg_rpc_file *f, bool *seen,
                    ProtobufCBinaryData *out, size_t *n)
{
    if (!f || seen[f - d->files])
        return;
    seen[f - d->files] = true;
    out[(*n)++] = (ProtobufCBinaryData){(size_t)(f->raw.end - f->raw.p), (uint8_t *)f->raw.p};
    for (size_t i = 0; i < f->n_deps; i++) /* as deep as the build's imports */
        collect(d, pseg_rpc_descriptors_file(d, f->deps[i]), seen, out, n);
}

static void say_file(answer *a, const pseg_rpc_file *f, const char *missing)
{
    Grpc__Reflection__V1__FileDescriptorResponse *fd = pseg_arena_alloc(a->arena, sizeof *fd);
    bool *seen = pseg_arena_calloc(a->arena, a->d->n_files, sizeof *seen);

    if (!f) {
        say_error(a, CODE_NOT_FOUND, missing);
        return;
    }
    if (!fd || !seen)
        return;
    grpc__reflection__v1__file_descriptor_response__init(fd);
    fd->file_descriptor_proto =
        pseg_arena_calloc(a->arena, a->d->n_files, sizeof *fd->file_descriptor_proto);
    if (!fd->file_descriptor_proto)
        return;
    collect(a->d, f, seen, fd->file_descriptor_proto, &fd->n_file_descriptor_proto);
    a->r.message_response_case = ANSWER(FILE_DESCRIPTOR_RESPONSE);
    a->r.file_descriptor_response = fd;
}

static void say_services(answer *a)
{
    size_t n = a->d->n_services;
    Grpc__Reflection__V1__ListServiceResponse *list = pseg_arena_alloc(a->arena, sizeof *list);
    Grpc__Reflection__V1__ServiceResponse *items = pseg_arena_calloc(a->arena, n, sizeof *items);
    Grpc__Reflection__V1__ServiceResponse **refs = pseg_arena_calloc(a->arena, n, sizeof *refs);

    if (!list || !items || !refs)
        return;
    grpc__reflection__v1__list_service_response__init(list);
    for (size_t i = 0; i < n; i++) {
        grpc__reflection__v1__service_response__init(&items[i]);
        items[i].name = (char *)a->d->services[i];
        refs[i] = &items[i];
    }
    list->n_service = n;
    list->service = refs;
    a->r.message_response_case = ANSWER(LIST_SERVICES_RESPONSE);
    a->r.list_services_response = list;
}

/* proto3 has no extensions, so every type that exists has none. */
static void say_extension_numbers(answer *a, const char *type)
{
    const pseg_rpc_symbol *sym = pseg_rpc_descriptors_symbol(a->d, type);
    Grpc__Reflection__V1__ExtensionNumberResponse *e = pseg_arena_alloc(a->arena, sizeof *e);

    if (!sym || sym->kind != PSEG_RPC_SYMBOL_MESSAGE) {
        say_error(a, CODE_NOT_FOUND, "no such type");
        return;
    }
    if (!e)
        return;
    grpc__reflection__v1__extension_number_response__init(e);
    e->base_type_name = (char *)sym->name;
    a->r.message_response_case = ANSWER(ALL_EXTENSION_NUMBERS_RESPONSE);
    a->r.all_extension_numbers_response = e;
}

static void info(pseg_rpc_call *c, const void *msg)
{
    const request *q = msg;
    const pseg_rpc_symbol *sym;
    pseg_err err = PSEG_ERR_INIT;

    if (!q) {
        pseg_rpc_finish(c);
        return;
    }
    answer a = {pseg_arena_new((size_t)1 << 20), pseg_rpc_ud(c),
                GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT};
    a.r.valid_host = q->host;
    a.r.original_request = (request *)q;
    if (a.arena)
        switch (q->message_request_case) {
        case ASKED(LIST_SERVICES):
            say_services(&a);
            break;
        case ASKED(FILE_BY_FILENAME):
            say_file(&a, pseg_rpc_descriptors_file(a.d, q->file_by_filename), "no such file");
            break;
        case ASKED(FILE_CONTAINING_SYMBOL):
            sym = pseg_rpc_descriptors_symbol(a.d, q->file_containing_symbol);
            say_file(&a, sym ? &a.d->files[sym->file] : NULL, "no such symbol");
            break;
        case ASKED(FILE_CONTAINING_EXTENSION):
            say_error(&a, CODE_NOT_FOUND, "no such extension: the server's messages have none");
            break;
        case ASKED(ALL_EXTENSION_NUMBERS_OF_TYPE):
            say_extension_numbers(&a, q->all_extension_numbers_of_type);
            break;
        default:
            say_error(&a, CODE_INVALID_ARGUMENT, "the request asks for nothing");
            break;
        }
    if (a.r.message_response_case) {
        pseg_rpc_send(c, &a.r.base);
    } else {
        pseg_err_set(&err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "out of memory");
        pseg_rpc_fail(c, &err);
    }
    pseg_arena_free(a.arena);
}

static void drain(pseg_rpc_call *c)
{
    pseg_err err = PSEG_ERR_INIT;

    pseg_err_set(&err, PSEG_R_DRAINING, 0, PSEG_HERE, "the server is stopping");
    pseg_rpc_fail(c, &err);
}

/* The request type of v1alpha is another one with the same members, so the handler reads both. */
#define REFLECTION(version)                                                        \
    {                                                                              \
        "/grpc.reflection." #version ".ServerReflection/ServerReflectionInfo",     \
            PSEG_RPC_CLIENT_STREAM | PSEG_RPC_SERVER_STREAM | PSEG_RPC_PUBLIC,     \
            &grpc__reflection__##version##__server_reflection_request__descriptor, \
            .on_message = info, .on_writable = pseg_rpc_read, .on_drain = drain    \
    }

const pseg_rpc_method pseg_rpc_reflection_methods[] = {REFLECTION(v1), REFLECTION(v1alpha), {0}};
