#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/conf.h"

#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>

struct target {
    const char *config, *name, *key;
    int64_t size, wait_ms;
    double ratio;
    bool verbose;
    pseg_conf_list tags;
};

static const pseg_conf_option table[] = {
    {"config", PSEG_CONF_STRING, offsetof(struct target, config), NULL, .unit = "FILE"},
    {"name", PSEG_CONF_STRING, offsetof(struct target, name), "anon", .letter = 'n'},
    {"secret_key", PSEG_CONF_STRING, offsetof(struct target, key), NULL, .is_secret = true},
    {"size", PSEG_CONF_INT, offsetof(struct target, size), "4k", .min = 1, .max = 1 << 20},
    {"wait_ms", PSEG_CONF_INT, offsetof(struct target, wait_ms), "2s", .unit = "ms"},
    {"ratio", PSEG_CONF_REAL, offsetof(struct target, ratio), "0.5", .min = 0, .max = 1},
    {"verbose", PSEG_CONF_BOOL, offsetof(struct target, verbose), "false"},
    {"tag", PSEG_CONF_LIST, offsetof(struct target, tags), NULL},
    {0}};

static pseg_status parse(pseg_conf **c, struct target *t, pseg_err *e, int argc, char **argv)
{
    memset(t, 0, sizeof *t);
    *e = (pseg_err)PSEG_ERR_INIT;
    return pseg_conf_parse(c, t, table, argc, argv, e);
}
#define PARSE(c, t, e, ...)                                                               \
    parse(c, t, e, (int)(sizeof((const char *[]){"prog", __VA_ARGS__}) / sizeof(char *)), \
          (char **)(const char *[]){"prog", __VA_ARGS__})

static void defaults_and_suffixes(void **state)
{
    struct target t;
    pseg_conf *c;
    pseg_err e;

    (void)state;
    assert_int_equal(PARSE(&c, &t, &e, "pos"), PSEG_OK);
    assert_string_equal(t.name, "anon");
    assert_int_equal(t.size, 4096);
    assert_int_equal(t.wait_ms, 2000);
    assert_true(t.ratio == 0.5 && !t.verbose && t.tags.n == 0);
    assert_int_equal(pseg_conf_n_args(c), 1);
    assert_string_equal(pseg_conf_arg(c, 0), "pos");
    assert_null(pseg_conf_arg(c, 1));
    assert_false(pseg_conf_is_set(c, "name"));
    pseg_conf_free(c);
}

static void flags_in_every_form(void **state)
{
    struct target t;
    pseg_conf *c;
    pseg_err e;

    (void)state;
    assert_int_equal(PARSE(&c, &t, &e, "--size=7", "-n", "bob", "--verbose", "--tag", "a",
                           "--tag=b", "--wait-ms", "3m", "--", "--not-a-flag"),
                     PSEG_OK);
    assert_int_equal(t.size, 7);
    assert_string_equal(t.name, "bob");
    assert_true(t.verbose);
    assert_int_equal(t.tags.n, 2);
    assert_string_equal(t.tags.items[1], "b");
    assert_int_equal(t.wait_ms, 180000);
    assert_string_equal(pseg_conf_arg(c, 0), "--not-a-flag");
    assert_true(pseg_conf_is_set(c, "name"));
    pseg_conf_free(c);
    assert_int_equal(PARSE(&c, &t, &e, "--no-verbose"), PSEG_OK);
    assert_false(t.verbose);
    pseg_conf_free(c);
}

static void mistakes_are_named(void **state)
{
    struct target t;
    pseg_conf *c;
    pseg_err e;
    static const struct {
        const char *flag, *part;
    } bad[] = {{"--colour=1", "unknown option --colour=1"},
               {"--size=0", "--size: 0 is outside 1 to 1048576"},
               {"--size=x", "\"x\" is not a whole number"},
               {"--size=9z", "\"9z\" is not a whole number"},
               {"--size=99999999999999999999", "is not a whole number"},
               {"--ratio=nan", "is not a number"},
               {"--ratio=1.5", "outside 0 to 1"},
               {"--verbose=maybe", "is not true or false"},
               {"--name", "--name needs a value"},
               {"--no-name", "unknown option"},
               {"-z", "unknown option -z"},
               {"--config=/no/such", "/no/such"}};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(PARSE(&c, &t, &e, bad[i].flag) < 0);
        assert_non_null(strstr(e.msg, bad[i].part));
        pseg_conf_free(c);
    }
}

static void flag_beats_environment_beats_file_beats_default(void **state)
{
    char path[] = "/tmp/pseg-conf-XXXXXX", flag[64];
    struct target t;
    pseg_conf *c;
    pseg_err e;
    int fd = mkstemp(path);
    static const char text[] = "# comment\nname = from file\n\nsize=10\nratio = 0.25\ntag = x\n";

    (void)state;
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    setenv("PSEG_SIZE", "20", 1);
    setenv("PSEG_RATIO", "0.75", 1);
    snprintf(flag, sizeof flag, "--config=%s", path);
    assert_int_equal(PARSE(&c, &t, &e, flag, "--ratio", "1"), PSEG_OK);
    assert_string_equal(t.name, "from file");
    assert_int_equal(t.size, 20);
    assert_true(t.ratio == 1);
    assert_int_equal(t.tags.n, 1);
    pseg_conf_free(c);

    setenv("PSEG_SIZE", "much", 1);
    assert_true(PARSE(&c, &t, &e, "x") < 0);
    assert_non_null(strstr(e.msg, "PSEG_SIZE"));
    pseg_conf_free(c);
    unsetenv("PSEG_SIZE");
    unsetenv("PSEG_RATIO");

    fd = open(path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd, "name = a\ncolour = 1\n", 20), 20);
    close(fd);
    assert_true(PARSE(&c, &t, &e, flag) < 0);
    assert_non_null(strstr(e.msg, ":2: unknown option colour"));
    pseg_conf_free(c);
    unlink(path);
}

static void secrets_are_not_described(void **state)
{
    struct target t;
    pseg_conf *c;
    pseg_err e;

    (void)state;
    assert_int_equal(PARSE(&c, &t, &e, "--secret-key=hunter2", "--tag=q"), PSEG_OK);
    char *text = pseg_conf_describe(c);
    assert_null(strstr(text, "hunter2"));
    assert_non_null(strstr(text, "secret_key=***"));
    assert_non_null(strstr(text, "size=4096"));
    assert_non_null(strstr(text, "tag=q"));
    pseg_free(text);
    pseg_conf_free(c);
}

/* What pseg_conf_answer writes after parsing `flag`; caller frees with free. */
static char *answer(const char *flag)
{
    static const pseg_conf_about about = {"prog", "--size N\nFILE", "Does it.", "prog --size 7",
                                          "The end."};
    struct target t;
    pseg_conf *c;
    pseg_err e;
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    assert_int_equal(PARSE(&c, &t, &e, "--colour", flag), PSEG_OK); /* a question wins */
    assert_true(pseg_conf_answer(c, f, &about));
    fclose(f);
    pseg_conf_free(c);
    return text;
}

static void questions_win_over_mistakes_and_are_answered(void **state)
{
    struct target t;
    pseg_conf *c;
    pseg_err e;

    (void)state;
    char *text = answer("--help");
    assert_ptr_equal(strstr(text, "usage: prog --size N\n       prog FILE\n\nDoes it.\n\n"
                                  "  prog --size 7\n\noptions:\n"),
                     text);
    assert_non_null(strstr(text, "-n, --name TEXT"));
    assert_string_equal(text + strlen(text) - strlen("\nThe end.\n"), "\nThe end.\n");
    free(text);
    text = answer("--help-markdown");
    assert_ptr_equal(strstr(text, "## prog\n\nDoes it.\n\n```sh\nprog --size 7\n```\n\n| option |"),
                     text);
    assert_non_null(strstr(text, "| `--size` | `PSEG_SIZE` | `size` | `4k` | 1 to 1048576 |  |\n"));
    free(text);
    text = answer("--version");
    assert_ptr_equal(strstr(text, "prog "), text);
    free(text);
    assert_int_equal(PARSE(&c, &t, &e, "--size=7"), PSEG_OK);
    assert_false(pseg_conf_answer(c, stdout, &(pseg_conf_about){0}));
    pseg_conf_free(c);
}

static void help_keeps_to_the_width_of_a_screen(void **state)
{
    static const pseg_conf_option wide[] = {
        {"size", PSEG_CONF_INT, 0, "4k", .unit = "bytes",
         .help =
             "a help that goes on and on, over the edge of the screen, and further still, until "
             "it has gone twice around"},
        {"an_option_with_a_rather_long_name", PSEG_CONF_STRING, 0, NULL, .unit = "FILE",
         .help = "short"},
        {0}};
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    (void)state;
    pseg_conf_print_help(f, wide);
    fclose(f);
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 100);
    assert_non_null(strstr(text, "\n                                   "));
    assert_non_null(strstr(text, "around [4k]\n"));
    assert_non_null(strstr(text, " FILE \n                                   short\n"));
    free(text);
}

static void a_slip_is_recognised(void **state)
{
    struct target t;
    pseg_conf *c;
    pseg_err e;
    static const struct {
        const char *flag, *meant;
    } slips[] = {{"--sizw=3", "--size?"},
                 {"--secretkey", "--secret-key?"},
                 {"--verb", "--verbose?"},
                 {"--wait_m", "--wait-ms?"}};

    (void)state;
    for (size_t i = 0; i < sizeof slips / sizeof *slips; i++) {
        assert_true(PARSE(&c, &t, &e, slips[i].flag) < 0);
        assert_non_null(strstr(e.msg, slips[i].meant));
        pseg_conf_free(c);
    }
    assert_true(PARSE(&c, &t, &e, "--colour") < 0);
    assert_null(strstr(e.msg, "mean"));
    pseg_conf_free(c);
    assert_int_equal(pseg_conf_slip("waitms", 6, "wait_ms"), 1);
    assert_int_equal(pseg_conf_slip("wait-ms", 7, "wait_ms"), 0);
    assert_true(pseg_conf_slip("", 0, "size") == SIZE_MAX);
    assert_true(pseg_conf_slip("xyz", 3, "size") == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_and_suffixes),
        cmocka_unit_test(flags_in_every_form),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(flag_beats_environment_beats_file_beats_default),
        cmocka_unit_test(secrets_are_not_described),
        cmocka_unit_test(questions_win_over_mistakes_and_are_answered),
        cmocka_unit_test(help_keeps_to_the_width_of_a_screen),
        cmocka_unit_test(a_slip_is_recognised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
