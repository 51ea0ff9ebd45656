/* The set is the build's own, but lengths are checked all the same. */
#include "common/rpc/descriptors.h"

#include "common/base/alloc.h"
#include "common/rpc/rpc.h"

#include <stdlib.h>
#include <string.h>

typedef pseg_rpc_span span;
typedef pseg_rpc_symbol symbol;
typedef pseg_rpc_file file;

/* ---- reading descriptors: field numbers are those of google/protobuf/descriptor.proto ---- */

static bool varint(span *s, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; s->p < s->end && shift < 64; shift += 7) {
        uint8_t b = *s->p++;
        *out |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80))
            return true;
    }
    return false;
}

/* The next field's number; its bytes in *body, or its value in *value. 0: at the end or corrupt,
 * and *s is then empty. */
static uint64_t next_field(span *s, span *body, uint64_t *value)
{
    uint64_t key, n = 0;

    *body = (span){NULL, NULL};
    if (s->p < s->end && varint(s, &key) && (key >> 3) > 0) {
        bool ok = (key & 7) == 0   ? varint(s, value)
                  : (key & 7) == 1 ? (n = 8, true)
                  : (key & 7) == 5 ? (n = 4, true)
                  : (key & 7) == 2 ? varint(s, &n)
                                   : false;
        if (ok && n <= (uint64_t)(s->end - s->p)) {
            *body = (span){s->p, s->p + n};
            s->p += n;
            return key >> 3;
        }
    }
    s->p = s->end;
    return 0;
}

static const char *text_of(pseg_arena *a, span message, uint64_t number)
{
    span body;
    uint64_t n, value;

    while ((n = next_field(&message, &body, &value)) != 0)
        if (n == number)
            return pseg_arena_strndup(a, (const char *)body.p, (size_t)(body.end - body.p));
    return "";
}

enum kind { FILE_ITEM, MESSAGE, ENUM, SERVICE, METHOD, LEAF, NOTHING };

static enum kind child_kind(enum kind parent, uint64_t number)
{
    switch (parent) {
    case FILE_ITEM:
        return number == 4   ? MESSAGE
               : number == 5 ? ENUM
               : number == 6 ? SERVICE
               : number == 7 ? LEAF
                             : NOTHING;
    case MESSAGE:
        return number == 3                                 ? MESSAGE
               : number == 4                               ? ENUM
               : number == 2 || number == 6 || number == 8 ? LEAF
                                                           : NOTHING;
    case ENUM:
        return number == 2 ? LEAF : NOTHING;
    case SERVICE:
        return number == 2 ? METHOD : NOTHING;
    default:
        return NOTHING;
    }
}

static char *join(pseg_arena *a, const char *scope, const char *name)
{
    size_t n = strlen(scope), m = strlen(name);
    char *full = pseg_arena_alloc(a, n + 1 + m + 1);

    if (!full)
        return NULL;
    memcpy(full, scope, n);
    if (n)
        full[n++] = '.';
    memcpy(full + n, name, m + 1);
    return full;
}

static void read_method(pseg_arena *a, symbol *sym, span s)
{
    span t = s, body;
    uint64_t n, value = 0;

    sym->kind = PSEG_RPC_SYMBOL_METHOD;
    sym->input = text_of(a, s, 2);
    while ((n = next_field(&t, &body, &value)) != 0) {
        if (n == 5 && value)
            sym->streams |= PSEG_RPC_CLIENT_STREAM;
        if (n == 6 && value)
            sym->streams |= PSEG_RPC_SERVER_STREAM;
    }
}

/* Recursion is as deep as the messages of the build's own protos are nested. */
static pseg_status add_item(pseg_rpc_descriptors *d, span s, enum kind kind, const char *scope,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *name = text_of(d->arena, s, 1);
    char *full = name ? join(d->arena, scope, name) : NULL;
    span t = s, body;
    uint64_t n, value;

    if (full && d->n_symbols == d->max_symbols) {
        size_t max = d->max_symbols ? 2 * d->max_symbols : 256;
        symbol *more = pseg_realloc(d->symbols, max * sizeof *more);
        if (!more)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        d->symbols = more;
        d->max_symbols = max;
    }
    if (!full)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    symbol *sym = &d->symbols[d->n_symbols++];
    *sym = (symbol){.name = full, .file = d->n_files - 1};
    if (kind == MESSAGE)
        sym->kind = PSEG_RPC_SYMBOL_MESSAGE;
    if (kind == METHOD)
        read_method(d->arena, sym, s);
    while ((n = next_field(&t, &body, &value)) != 0) {
        enum kind child = child_kind(kind, n);
        if (child != NOTHING) /* an enum's values stand beside it, not in it */
            PSEG_TRY(add_item(d, body, child, kind == ENUM ? scope : full, err));
    }
out:
    return rc;
}

static size_t count_fields(span message, uint64_t number)
{
    span body;
    uint64_t n, value;
    size_t count = 0;

    while ((n = next_field(&message, &body, &value)) != 0)
        count += n == number;
    return count;
}

static pseg_status add_file(pseg_rpc_descriptors *d, span raw, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    file *f = &d->files[d->n_files++];
    const char *package = text_of(d->arena, raw, 2);
    span t = raw, body;
    uint64_t n, value;

    f->raw = raw;
    f->name = text_of(d->arena, raw, 1);
    f->deps = pseg_arena_calloc(d->arena, count_fields(raw, 3) + 1, sizeof *f->deps);
    if (!f->name || !f->deps || !package)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    while ((n = next_field(&t, &body, &value)) != 0) {
        enum kind child = child_kind(FILE_ITEM, n);
        if (child != NOTHING)
            PSEG_TRY(add_item(d, body, child, package, err));
        if (n != 3)
            continue;
        f->deps[f->n_deps] =
            pseg_arena_strndup(d->arena, (const char *)body.p, (size_t)(body.end - body.p));
        if (!f->deps[f->n_deps++])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    }
out:
    return rc;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const symbol *)a)->name, ((const symbol *)b)->name);
}

pseg_status pseg_rpc_descriptors_new(pseg_rpc_descriptors **out, const uint8_t *set, size_t len,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    span all = {set, set + len}, body;
    uint64_t n, value;
    pseg_rpc_descriptors *d = pseg_calloc(1, sizeof *d);

    *out = NULL;
    if (d)
        d->arena = pseg_arena_new((size_t)64 << 20);
    if (!d || !d->arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    d->files = pseg_arena_calloc(d->arena, count_fields(all, 1) + 1, sizeof *d->files);
    if (!d->files)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    while ((n = next_field(&all, &body, &value)) != 0)
        if (n == 1)
            PSEG_TRY(add_file(d, body, err));
    if (d->n_files == 0)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the descriptor set holds no files");
    qsort(d->symbols, d->n_symbols, sizeof *d->symbols, by_name);
    *out = d;
    d = NULL;
out:
    pseg_rpc_descriptors_free(d);
    return rc;
}

void pseg_rpc_descriptors_free(pseg_rpc_descriptors *d)
{
    if (!d)
        return;
    pseg_free(d->services);
    pseg_free(d->symbols);
    pseg_arena_free(d->arena);
    pseg_free(d);
}

const symbol *pseg_rpc_descriptors_symbol(const pseg_rpc_descriptors *d, const char *name)
{
    symbol key = {.name = name[0] == '.' ? name + 1 : name};

    return bsearch(&key, d->symbols, d->n_symbols, sizeof *d->symbols, by_name);
}

file *pseg_rpc_descriptors_file(const pseg_rpc_descriptors *d, const char *name)
{
    for (size_t i = 0; i < d->n_files; i++)
        if (strcmp(d->files[i].name, name) == 0)
            return &d->files[i];
    return NULL;
}

pseg_status pseg_rpc_descriptors_serve(pseg_rpc_descriptors *d, const pseg_rpc_method *m,
                                       pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const unsigned streams = PSEG_RPC_CLIENT_STREAM | PSEG_RPC_SERVER_STREAM;
    size_t n = strlen(m->path);
    char *name = pseg_arena_strndup(d->arena, m->path, n);
    char *slash = name ? strrchr(name, '/') : NULL;

    if (!name)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (name[0] != '/' || !slash || slash == name)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "method path '%s' is not /package.Service/Method", m->path);
    *slash = '.';
    const symbol *sym = pseg_rpc_descriptors_symbol(d, name + 1);
    if (!sym || sym->kind != PSEG_RPC_SYMBOL_METHOD)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "method %s is in no .proto file of the server", m->path);
    if (strcmp(sym->input + (sym->input[0] == '.'), m->request->name) != 0)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "method %s takes %s, not %s", m->path, sym->input,
                  m->request->name);
    if (sym->streams != (m->flags & streams))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "method %s streams otherwise than its .proto says", m->path);
    *slash = '\0';
    for (size_t i = 0; i < d->n_services; i++)
        if (strcmp(d->services[i], name + 1) == 0)
            goto out;
    const char **more = pseg_realloc(d->services, (d->n_services + 1) * sizeof *more);
    if (!more)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    d->services = more;
    d->services[d->n_services++] = name + 1;
out:
    return rc;
}
