/* An encoder opened alone takes the variants that were tuned for its device, as a model does.
 * Exit 77: there is no device. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/golden/tuned_choice.h"
#include "worker/model/towers.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_image_encoder_takes_what_was_tuned),
        cmocka_unit_test(the_text_encoder_takes_what_was_tuned),
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
