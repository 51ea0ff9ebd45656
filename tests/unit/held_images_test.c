/* What a scheduler remembers of the images that the queue holds. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scheduler/service/held_images.h"

#include <stdio.h>

static held_images held = {.mu = PTHREAD_MUTEX_INITIALIZER};

static void an_image_is_known_to_its_tenant_until_it_is_forgotten(void **state)
{
    (void)state;
    assert_false(held_images_know(&held, "a", "1"));
    held_images_note(&held, "a", "1");
    assert_true(held_images_know(&held, "a", "1"));
    assert_false(held_images_know(&held, "b", "1"));
    assert_false(held_images_know(&held, "a", "2"));
    assert_false(held_images_know(&held, "a1", ""));
    held_images_forget(&held, "a", "1");
    assert_false(held_images_know(&held, "a", "1"));
}

/* Many more than there is room for: the last ones are known, and never one that was not noted. */
static void later_ones_take_the_place_of_earlier_ones(void **state)
{
    enum { N = 4 * HELD_IMAGES };
    char name[24];
    size_t n_known = 0;

    (void)state;
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "%d", i);
        held_images_note(&held, "t", name);
        assert_true(held_images_know(&held, "t", name));
    }
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "%d", i);
        n_known += held_images_know(&held, "t", name);
        snprintf(name, sizeof name, "%d", N + i);
        assert_false(held_images_know(&held, "t", name));
    }
    assert_in_range(n_known, HELD_IMAGES / 2, HELD_IMAGES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_image_is_known_to_its_tenant_until_it_is_forgotten),
        cmocka_unit_test(later_ones_take_the_place_of_earlier_ones),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
