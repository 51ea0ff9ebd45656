/* UploadImage and BatchCheckImages. */
#include "scheduler/service/internal.h"
#include "common/base/alloc.h"
#include "common/base/hash.h"
#include "scheduler/service/validate.h"

#include <stdio.h>

#include <string.h>

typedef struct upload {
    char sha256[PSEG_SHA256_HEX + 1];
    size_t size, len;
    uint8_t *data; /* of `size` bytes, allocated when the image is known not to be held */
    pseg_sha256 *hash;
    pseg_rpc_timer drain;
} upload;

#define VALUE(...) pseg_err_value(&e_, __VA_ARGS__)
#define LIMIT(...) pseg_err_limit(&e_, __VA_ARGS__)
#define FAIL(c, reason, field, value, limit, ...)               \
    do {                                                        \
        pseg_err e_ = PSEG_ERR_INIT;                            \
        pseg_err_set(&e_, (reason), 0, PSEG_HERE, __VA_ARGS__); \
        pseg_err_field(&e_, "%s", (field));                     \
        value;                                                  \
        limit;                                                  \
        pseg_rpc_fail((c), &e_);                                \
    } while (0)

static void stalled(pseg_rpc_timer *t, void *ud)
{
    pseg_rpc_call *c = ud;
    int64_t ms = service_of(c)->opt.stall_ms;

    (void)t;
    FAIL(c, PSEG_R_DEADLINE_EXCEEDED, "", VALUE("%lld", (long long)ms),
         LIMIT("%lld", (long long)ms), "the client has sent nothing for %lld ms; upload again",
         (long long)ms);
}

/* The client's turn, which may not take for ever: what it has sent so far takes memory. */
static void read_next(pseg_rpc_call *c)
{
    pseg_rpc_timer_set(pseg_rpc_loop_of(c), &state_of(c)->stall, service_of(c)->opt.stall_ms,
                       stalled, c);
    pseg_rpc_read(c);
}

static void reply_image(pseg_rpc_call *c, const char *sha256, const pseg_queue_image *i)
{
    Pseg__V1__Image out = PSEG__V1__IMAGE__INIT;

    out.sha256 = (char *)(uintptr_t)sha256;
    out.size_bytes = i->size_bytes;
    out.existed = i->existed;
    out.expire_time = timestamp_of(pseg_rpc_arena(c), i->expire_unix_us);
    pseg_rpc_reply(c, &out.base);
}

/* False: the call has failed. */
static bool take_room(pseg_rpc_call *c, const upload *u)
{
    int64_t may;

    switch (upload_take(&service_of(c)->uploads, pseg_rpc_tenant(c), (int64_t)u->size, &may)) {
    case UPLOAD_TAKEN:
        return true;
    case UPLOAD_NO_MEMORY:
        fail_no_memory(c);
        return false;
    case UPLOAD_OVER_SHARE:
        FAIL(c, PSEG_R_SERVER_BUSY, "", VALUE("%zu", u->size), LIMIT("%lld", (long long)may),
             "uploads of tenant %s under way fill its share of %lld bytes; let some end, and try "
             "again later",
             pseg_rpc_tenant(c), (long long)may);
        return false;
    case UPLOAD_FULL:
        break;
    }
    FAIL(c, PSEG_R_SERVER_BUSY, "", VALUE("%zu", u->size), LIMIT("%lld", (long long)may),
         "uploads under way fill their limit of %lld bytes; try again later", (long long)may);
    return false;
}

static void looked_up(pseg_rpc_call *c, pseg_queue_reply *r)
{
    upload *u = state_of(c)->upload;

    if (fail_if_error(c, r))
        return;
    if (r->images[0].size_bytes) {
        r->images[0].existed = true;
        reply_image(c, u->sha256, &r->images[0]);
        return;
    }
    if (!take_room(c, u))
        return;
    u->data = pseg_malloc(u->size);
    u->hash = pseg_sha256_new();
    if (!u->data || !u->hash) {
        if (!u->data)
            upload_give(&service_of(c)->uploads, pseg_rpc_tenant(c), (int64_t)u->size);
        fail_no_memory(c);
        return;
    }
    read_next(c);
}

static void begin(pseg_rpc_call *c, const Pseg__V1__UploadHeader *h)
{
    pseg_service *s = service_of(c);
    call_state *state = state_of(c);
    pseg_err e = PSEG_ERR_INIT;

    if (pseg_check_sha256(h->sha256, "header.sha256", &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    if (h->size_bytes == 0) {
        FAIL(c, PSEG_R_IMAGE_MISSING, "header.size_bytes", VALUE("0"),
             LIMIT("1..%lld", (long long)s->opt.max_image_bytes),
             "size_bytes is 0: there is no image to upload");
        return;
    }
    if (h->size_bytes > (uint64_t)s->opt.max_image_bytes) {
        FAIL(c, PSEG_R_IMAGE_TOO_LARGE, "header.size_bytes",
             VALUE("%llu", (unsigned long long)h->size_bytes),
             LIMIT("%lld", (long long)s->opt.max_image_bytes),
             "image of %llu bytes is over the limit of %lld; recompress it",
             (unsigned long long)h->size_bytes, (long long)s->opt.max_image_bytes);
        return;
    }
    upload *u = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *u);
    op *o = u && state ? op_new(c, looked_up) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    u->size = (size_t)h->size_bytes;
    memcpy(u->sha256, h->sha256, sizeof u->sha256);
    state->upload = u;
    const char *sha256 = u->sha256;
    pseg_queue_has_images(s->queue, pseg_rpc_tenant(c), &sha256, 1, op_done, o);
}

/* Is what has come no image? As soon as enough of it is there, however small the chunks are. */
static bool refuse_format(pseg_rpc_call *c, const upload *u, size_t len_before, bool at_end)
{
    pseg_err e = PSEG_ERR_INIT;

    if (!at_end && (len_before >= PSEG_IMAGE_MAGIC_BYTES || u->len < PSEG_IMAGE_MAGIC_BYTES))
        return false;
    if (pseg_check_image_magic(u->data, u->len, "chunk", &e) == PSEG_OK)
        return false;
    pseg_rpc_fail(c, &e);
    return true;
}

static void take_chunk(pseg_rpc_call *c, upload *u, ProtobufCBinaryData chunk)
{

    if (chunk.len == 0 || chunk.len > PSEG_MAX_CHUNK_BYTES) {
        FAIL(c, PSEG_R_REQUEST_TOO_LARGE, "chunk", VALUE("%zu", chunk.len),
             LIMIT("1..%d", PSEG_MAX_CHUNK_BYTES), "chunk of %zu bytes is not of 1 to %d",
             chunk.len, PSEG_MAX_CHUNK_BYTES);
        return;
    }
    if (chunk.len > u->size - u->len) {
        FAIL(c, PSEG_R_UPLOAD_INCOMPLETE, "chunk", VALUE("%zu", u->len + chunk.len),
             LIMIT("%zu", u->size), "the chunks hold more than the %zu bytes of the header",
             u->size);
        return;
    }
    memcpy(u->data + u->len, chunk.data, chunk.len);
    u->len += chunk.len;
    if (refuse_format(c, u, u->len - chunk.len, false))
        return;
    pseg_sha256_update(u->hash, chunk.data, chunk.len);
    read_next(c);
}

static void stored(pseg_rpc_call *c, pseg_queue_reply *r)
{
    if (!fail_if_error(c, r))
        reply_image(c, state_of(c)->upload->sha256, &r->images[0]);
}

static void finish(pseg_rpc_call *c, upload *u)
{
    uint8_t digest[PSEG_SHA256_BYTES];
    char hex[PSEG_SHA256_HEX + 1];

    if (u->len != u->size) {
        FAIL(c, PSEG_R_UPLOAD_INCOMPLETE, "header.size_bytes", VALUE("%zu", u->len),
             LIMIT("%zu", u->size), "the stream ended after %zu of %zu bytes", u->len, u->size);
        return;
    }
    if (u->len < PSEG_IMAGE_MAGIC_BYTES && refuse_format(c, u, 0, true))
        return;
    pseg_sha256_finish(u->hash, digest);
    pseg_hex(hex, digest, sizeof digest);
    if (strcmp(hex, u->sha256) != 0) {
        FAIL(c, PSEG_R_UPLOAD_HASH_MISMATCH, "header.sha256", VALUE("%s", u->sha256), (void)0,
             "the bytes have the SHA-256 %s, not that of the header", hex);
        return;
    }
    const pseg_service_options *so = &service_of(c)->opt;
    pseg_queue_tenant limits = {0};
    if (so->limits_of)
        so->limits_of(so->limits_ud, pseg_rpc_tenant(c), &limits);
    op *o = op_new(c, stored);
    if (o)
        pseg_queue_put_image(service_of(c)->queue, pseg_rpc_tenant(c), u->sha256,
                             (pseg_bytes){u->data, u->len}, limits.max_bytes, op_done, o);
}

void upload_image(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__UploadImageRequest *q = msg;
    call_state *state = state_of(c);
    upload *u = state ? state->upload : NULL;

    if (state)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state->stall);
    if (!state)
        fail_no_memory(c);
    else if (!q && u)
        finish(c, u);
    else if (!u && q && q->part_case == PSEG__V1__UPLOAD_IMAGE_REQUEST__PART_HEADER)
        begin(c, q->header);
    else if (u && q->part_case == PSEG__V1__UPLOAD_IMAGE_REQUEST__PART_CHUNK)
        take_chunk(c, u, q->chunk);
    else
        FAIL(c, PSEG_R_UPLOAD_OUT_OF_ORDER, "part",
             VALUE("%s", u                   ? "header"
                         : q && q->part_case ? "chunk"
                                             : "nothing"),
             LIMIT("%s", u ? "chunk" : "header"), "%s",
             u ? "only chunks may follow the header" : "the first message must be the header");
}

static void drained(pseg_rpc_timer *t, void *ud)
{
    pseg_err e = PSEG_ERR_INIT;

    (void)t;
    pseg_err_set(&e, PSEG_R_DRAINING, 0, PSEG_HERE,
                 "the server is stopping and the upload is not complete; another one will take it");
    pseg_rpc_fail(ud, &e);
}

/* An upload under way may still be completed, but one that hangs must not hold the server up. */
void upload_drain(pseg_rpc_call *c)
{
    call_state *state = state_of(c);

    if (state && state->upload)
        pseg_rpc_timer_set(pseg_rpc_loop_of(c), &state->upload->drain,
                           service_of(c)->opt.upload_drain_ms, drained, c);
    else
        drained(NULL, c);
}

void upload_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);
    upload *u = state ? state->upload : NULL;

    if (state)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state->stall);
    if (!u)
        return;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &u->drain);
    if (u->data)
        upload_give(&service_of(c)->uploads, pseg_rpc_tenant(c), (int64_t)u->size);
    pseg_free(u->data);
    pseg_sha256_free(u->hash);
    u->data = NULL;
    u->hash = NULL;
}

/* ---- BatchCheckImages ---- */

static void checked(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_arena *a = pseg_rpc_arena(c);
    const Pseg__V1__BatchCheckImagesRequest *q = state_of(c)->check;
    Pseg__V1__BatchCheckImagesResponse out = PSEG__V1__BATCH_CHECK_IMAGES_RESPONSE__INIT;

    if (fail_if_error(c, r))
        return;
    out.images = pseg_arena_calloc(a, r->n_images, sizeof *out.images);
    Pseg__V1__Image *images = pseg_arena_calloc(a, r->n_images, sizeof *images);
    if (!out.images || !images) {
        fail_no_memory(c);
        return;
    }
    for (size_t i = 0; i < r->n_images; i++) {
        pseg__v1__image__init(&images[i]);
        images[i].sha256 = q->sha256[i];
        images[i].size_bytes = r->images[i].size_bytes;
        images[i].existed = r->images[i].size_bytes > 0;
        images[i].expire_time = timestamp_of(a, r->images[i].expire_unix_us);
        out.images[out.n_images++] = &images[i];
    }
    pseg_rpc_reply(c, &out.base);
}

void batch_check_images(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__BatchCheckImagesRequest *q = msg;
    call_state *state = state_of(c);
    pseg_err e = PSEG_ERR_INIT;
    char field[32];

    if (q->n_sha256 < 1 || q->n_sha256 > PSEG_MAX_CHECK_IMAGES) {
        FAIL(c, PSEG_R_INVALID_ARGUMENT, "sha256", VALUE("%zu", q->n_sha256),
             LIMIT("1..%d", PSEG_MAX_CHECK_IMAGES), "%zu images are not between 1 and %d",
             q->n_sha256, PSEG_MAX_CHECK_IMAGES);
        return;
    }
    for (size_t i = 0; i < q->n_sha256; i++) {
        snprintf(field, sizeof field, "sha256[%zu]", i);
        if (pseg_check_sha256(q->sha256[i], field, &e) != PSEG_OK) {
            pseg_rpc_fail(c, &e);
            return;
        }
    }
    op *o = state ? op_new(c, checked) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    state->check = q;
    pseg_queue_has_images(service_of(c)->queue, pseg_rpc_tenant(c), (const char *const *)q->sha256,
                          q->n_sha256, op_done, o);
}
