/* An encoder opened alone takes the variants that were tuned for its device, as a model does; and
 * so does a trainer, whatever its text encoder is. Exit 77: there is no device. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/file.h"
#include "tests/golden/tuned_choice.h"
#include "worker/model/safetensors_write.h"
#include "worker/model/towers.h"
#include "worker/train/head.h"
#include "worker/train/init.h"
#include "worker/train/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODELS PSEG_TEST_SOURCE_DIR "/tests/golden/data/models/"

static char dir[] = "/tmp/pseg-towers-XXXXXX";
static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

static pseg_status open_cl(pseg_cl **c)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;

    o.cache_dir = dir;
    o.variant = PSEG_CL_CPU;
    return pseg_cl_open(c, &o, &err);
}

static int keep_choice(void **state)
{
    pseg_cl *c = NULL;

    (void)state;
    OK(open_cl(&c));
    OK(tuned_choice_keep(c, &err));
    pseg_cl_close(c);
    return 0;
}

static void the_image_encoder_takes_what_was_tuned(void **state)
{
    pseg_vision_options o = {.taps = {1}, .n_taps = 1, .max_images = 1};
    pseg_vision *v;
    pseg_cl *c;

    (void)state;
    OK(open_cl(&c));
    assert_false(tuned_choice_is_taken(c));
    OK(pseg_vision_open(&v, c, MODELS "dinov2_tiny", &o, &err));
    assert_true(tuned_choice_is_taken(c));
    pseg_vision_close(v);
    pseg_cl_close(c);
}

static void the_text_encoder_takes_what_was_tuned(void **state)
{
    pseg_phrases_options o = {.max_phrases = 1};
    pseg_phrases *p;
    pseg_cl *c;

    (void)state;
    OK(open_cl(&c));
    assert_false(tuned_choice_is_taken(c));
    OK(pseg_phrases_open(&p, c, MODELS "pseg_tokens/text", &o, &err));
    assert_true(tuned_choice_is_taken(c));
    pseg_phrases_close(p);
    pseg_cl_close(c);
}

/* A table of one phrase: it has no tower that would load anything. */
static void make_table(const char *folder)
{
    static const char names[] = "[\"a cup\"]";
    const float row[8] = {1, 2, 3, 4};
    pseg_tensors_writer *w;
    char path[96];

    OK(pseg_dir_make(folder, &err));
    snprintf(path, sizeof path, "%s/names.json", folder);
    OK(pseg_file_write(path, (const uint8_t *)names, sizeof names - 1, &err));
    snprintf(path, sizeof path, "%s/embeddings.safetensors", folder);
    OK(pseg_tensors_writer_new(&w, path, &err));
    OK(pseg_tensors_writer_declare(w, "embeddings", 2, (uint64_t[]){1, 8}, &err));
    OK(pseg_tensors_writer_data(w, row, 8, &err));
    OK(pseg_tensors_writer_finish(w, &err));
    pseg_tensors_writer_free(w);
}

static pseg_head_config small_head(const pseg_encoders *e)
{
    const pseg_vit_config *v = pseg_encoders_vision(e);
    pseg_head_config h;

    pseg_head_config_default(&h);
    h.taps[0] = 1;
    h.n_taps = h.n_upsample = 1;
    h.upsample[0] = 8;
    h.dim = 32;
    h.heads = 2;
    h.depth = 1;
    h.mlp = 32;
    h.vision_dim = v->hidden;
    h.patch = v->patch;
    h.gh = h.gw = 2;
    h.height = h.width = 2 * v->patch;
    h.text_dim = h.text_hidden = 8;
    return h;
}

static void a_trainer_takes_what_was_tuned(void **state)
{
    pseg_trainer_options o = {.sizes = {1, 1, 1},
                              .accumulate = 1,
                              .epochs = 1,
                              .max_tokens = 3,
                              .save_every = 1,
                              .optim = PSEG_OPTIM_OPTIONS_DEFAULT,
                              .loss = {1, 1, 1}};
    pseg_train_source source = {.n_train = 1, .has_taps = true};
    char table[64], out[64];
    pseg_specs specs = {0};
    pseg_weights *weights;
    pseg_encoders *e;
    pseg_trainer *t;
    pseg_cl *c;

    (void)state;
    snprintf(table, sizeof table, "%s/table", dir);
    snprintf(out, sizeof out, "%s/run", dir);
    make_table(table);
    o.folder = out;
    OK(open_cl(&c));
    OK(pseg_encoders_open(&e, c, MODELS "dinov2_tiny", table, &err));
    pseg_head_config head = small_head(e);
    OK(pseg_train_head_specs(&specs, &head, &err));
    pseg_init init = {1, &specs};
    OK(pseg_weights_from_fn(&weights, pseg_init_fill, &init, &err));
    assert_false(tuned_choice_is_taken(c));
    OK(pseg_trainer_new(&t, c, e, &source, &head, weights, &o, &err));
    assert_true(tuned_choice_is_taken(c));
    pseg_trainer_free(t);
    pseg_weights_free(weights);
    pseg_specs_deinit(&specs);
    pseg_encoders_close(e);
    pseg_cl_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_image_encoder_takes_what_was_tuned),
        cmocka_unit_test(the_text_encoder_takes_what_was_tuned),
        cmocka_unit_test(a_trainer_takes_what_was_tuned),
    };
    char command[64];
    pseg_cl *c;

    if (!mkdtemp(dir))
        return 1;
    pseg_status rc = open_cl(&c);
    if (rc == PSEG_OK)
        pseg_cl_close(c);
    else
        printf("no device: %s\n", err.msg);
    int failed = rc == PSEG_OK ? cmocka_run_group_tests(tests, keep_choice, NULL) : 77;
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command) != 0 ? 1 : failed;
}
