/* Tuning: what is measured is kept, found again and taken; what is damaged, or of another device or
 * other kernels, is told in one line and counts as absent. Exit 77: there is no device. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "kernels/embedded.h"
#include "worker/ops/tune.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>

#include <cmocka.h>

static char dir[] = "/tmp/pseg-tune-XXXXXX";
static pseg_cl *cl, *tuned;
static pseg_stream *s;
static pseg_err err;
static FILE *log_file;

static const pseg_op *gemm(void)
{
    return pseg_op_find("gemm");
}

/* A tuning of one choice that no rule would make: 2 x 1 tiles for many rows. */
static void one_choice(pseg_tuning *t)
{
    const pseg_op *op = gemm();
    size_t k = 0;

    memset(t, 0, sizeof *t);
    while (strcmp(op->variants->classes[k].name, "f32/1023") != 0)
        k++;
    t->peaks = (pseg_peaks){100, 200, 10};
    t->n = 1;
    t->choices[0] = (pseg_tune_choice){
        op,  k,  pseg_op_variant_find(op, "f32-2x1", 7), pseg_op_variant_find(op, "f32-6x1", 7),
        1.5, 2.5};
    assert_non_null(t->choices[0].best);
}

static const char *chosen_for(const pseg_cl *c, int64_t rows)
{
    pseg_op_args a = {.i = {rows, 64, 64, 64, 64, 64, 0}};

    return pseg_op_choose(c, gemm(), &a)->name;
}

/* Caller frees with pseg_free. */
static void format_one(char **text, bool is_bound)
{
    pseg_tuning t;

    one_choice(&t);
    assert_int_equal(pseg_tuning_format(text, &t, cl, is_bound, &err), PSEG_OK);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    for (int is_bound = 0; is_bound < 2; is_bound++) {
        char *text = NULL;
        pseg_tuning t;

        format_one(&text, is_bound);
        assert_int_equal(pseg_tuning_parse(&t, cl, text, strlen(text), &err), PSEG_OK);
        assert_int_equal(t.n, 1);
        assert_string_equal(t.choices[0].best->name, "f32-2x1");
        assert_true(fabs(t.choices[0].best_ms - 1.5) < 1e-3);
        assert_true(t.peaks.fp32_gflops == (is_bound ? 100 : 0));
        assert_true(!!strstr(text, "kernels = ") == is_bound);
        assert_true(!!strstr(text, "program = ") == is_bound);
        pseg_free(text);
    }
}

/* `from` replaced by `to` in the text of a file. */
static void refused(const char *from, const char *to, pseg_reason reason)
{
    char *text = NULL, changed[8192] = "";
    pseg_tuning t;

    format_one(&text, true);
    assert_non_null(strstr(text, from));
    size_t before = (size_t)(strstr(text, from) - text);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)before, text, to,
             text + before + strlen(from));
    err = (pseg_err)PSEG_ERR_INIT;
    assert_int_not_equal(pseg_tuning_parse(&t, cl, changed, strlen(changed), &err), PSEG_OK);
    if (err.reason != reason)
        fail_msg("\"%s\" for \"%s\" is refused as %s", to, from, err.msg);
    assert_int_equal(t.n, 0);
    assert_true(t.peaks.fp32_gflops == 0);
    pseg_free(text);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    refused("device = ", "device = another ", PSEG_R_UNSUPPORTED);
    refused("driver = ", "driver = 9", PSEG_R_UNSUPPORTED);
    refused("units = ", "units = 9", PSEG_R_UNSUPPORTED);
    refused("kernels = ", "kernels = 0", PSEG_R_UNSUPPORTED);
    refused("program = ", "program = 9", PSEG_R_UNSUPPORTED);
    refused("pseg tuning 1", "pseg tuning 2", PSEG_R_DATA_CORRUPT);
    refused("pseg tuning 1\n", "", PSEG_R_DATA_CORRUPT);
    refused("units = ", "colour = ", PSEG_R_DATA_CORRUPT);
    refused("choose gemm", "choose gemn", PSEG_R_DATA_CORRUPT);
    refused("f32/1023", "f32/1024", PSEG_R_DATA_CORRUPT);
    refused("f32-2x1", "f32-2x", PSEG_R_DATA_CORRUPT);
    refused(" 2.5000\n", "\n", PSEG_R_DATA_CORRUPT);
    refused(" 2.5000\n", " 2.5000 x\n", PSEG_R_DATA_CORRUPT);
    refused("fp32_gflops 100.0", "fp32_gflops -1", PSEG_R_DATA_CORRUPT);
    refused("fp32_gflops 100.0", "fp32_gflops inf", PSEG_R_DATA_CORRUPT);
    refused("fp32_gflops 100.0", "fp64_gflops 1", PSEG_R_DATA_CORRUPT);
    refused("end\n", "", PSEG_R_DATA_CORRUPT);
    refused("end\n", "end\nchoose\n", PSEG_R_DATA_CORRUPT);
}

/* Every beginning of a file, but the whole and the one without its last line break. */
static void what_is_cut_is_refused(void **state)
{
    char *text = NULL;
    pseg_tuning t;

    (void)state;
    format_one(&text, true);
    size_t n = strlen(text);
    for (size_t i = 0; i < n - 1; i++)
        if (pseg_tuning_parse(&t, cl, text, i, &err) == PSEG_OK)
            fail_msg("the first %zu of %zu bytes are taken for a file", i, n);
    text[n / 2] = '\0';
    assert_int_not_equal(pseg_tuning_parse(&t, cl, text, n, &err), PSEG_OK);
    pseg_free(text);
}

/* With kernels and tuning kept in `folder`; NULL: where the user's are. */
static pseg_cl *open_in(const char *folder)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_log log = {.fd = fileno(log_file), .level = PSEG_LOG_WARN};
    static pseg_log kept;
    pseg_cl *c = NULL;

    kept = log;
    o.cache_dir = folder;
    o.variant = PSEG_CL_CPU;
    o.log = &kept;
    assert_int_equal(pseg_cl_open(&c, &o, &err), PSEG_OK);
    return c;
}

static pseg_cl *open_again(void)
{
    return open_in(dir);
}

static size_t log_lines(void)
{
    size_t n = 0;
    int c;

    rewind(log_file);
    while ((c = fgetc(log_file)) != EOF)
        n += c == '\n';
    return n;
}

static void a_kept_file_is_taken_and_a_damaged_one_told(void **state)
{
    pseg_tuning t;
    char path[256] = "", line[512];

    (void)state;
    const char *usual = chosen_for(cl, 257);
    assert_string_not_equal(usual, "f32-2x1");
    one_choice(&t);
    assert_int_equal(pseg_tuning_save(&t, cl, &err), PSEG_OK);
    pseg_cl *c = open_again();
    pseg_tuning_load(c);
    assert_string_equal(chosen_for(c, 257), "f32-2x1");
    assert_string_not_equal(chosen_for(c, 5), "f32-2x1");
    assert_int_equal(log_lines(), 0);
    pseg_cl_close(c);

    snprintf(line, sizeof line, "ls %s/*.tuning", dir);
    FILE *ls = popen(line, "r");
    assert_true(ls && fgets(path, sizeof path, ls));
    pclose(ls);
    path[strcspn(path, "\n")] = '\0';
    assert_int_equal(pseg_file_write(path, "pseg tun", 8, &err), PSEG_OK);
    c = open_again();
    pseg_tuning_load(c);
    assert_string_equal(chosen_for(c, 257), usual);
    assert_int_equal(log_lines(), 1);
    pseg_cl_close(c);
}

static unsigned n_told;
static void told(void *ud, const char *op, const char *shape)
{
    assert_true(*op && *shape);
    n_told += ud == &n_told;
}

static void tuning_measures_what_can_run(void **state)
{
    pseg_tuning t;
    pseg_tune_options o = {.budget_ms = 0.1,
                           .max_flops = 4e6,
                           .only = pseg_op_find("attention"),
                           .progress = told,
                           .ud = &n_told};

    (void)state;
    assert_int_equal(pseg_tune(&t, s, &o, &err), PSEG_OK);
    assert_true(t.n >= 2 && n_told == t.n + 1);
    for (size_t i = 0; i < t.n; i++) {
        const pseg_tune_choice *k = &t.choices[i];

        assert_true(k->best_ms > 0 && isfinite(k->usual_ms));
        assert_true(k->best == k->usual || k->best_ms < 0.98 * k->usual_ms);
        pseg_op_args a;
        pseg_op_case_args(&a, &k->op->variants->classes[k->class_index]);
        assert_true(k->op->variants->can(k->best, tuned, &a));
    }
    pseg_tuning_apply(&t, tuned);
    for (size_t i = 0; i < t.n; i++) {
        pseg_op_args a;
        pseg_op_case_args(&a, &t.choices[i].op->variants->classes[t.choices[i].class_index]);
        assert_ptr_equal(pseg_op_choose(tuned, t.choices[i].op, &a), t.choices[i].best);
    }
    for (size_t i = 0; i < t.n; i++)
        pseg_op_force(tuned, t.choices[i].op, NULL);
    assert_true(t.peaks.fp32_gflops > 0.01 && isfinite(t.peaks.fp32_gflops));
    assert_true(t.peaks.bf16_gflops >= t.peaks.fp32_gflops * 0.5);
    assert_true(t.peaks.read_gbytes > 0.01 && t.peaks.read_gbytes < 1e5);
}

/* The files of kernels/tuned mean something to this program, whatever device they are for: with
 * their conditions left out, each parses. */
static void the_programs_own_files_are_sound(void **state)
{
    (void)state;
    for (size_t i = 0; i < pseg_n_tuned_files; i++) {
        const pseg_kernel_source *f = &pseg_tuned_files[i];
        char *text = calloc(f->size + 1, 1), *copy = calloc(f->size + 1, 1);
        pseg_tuning t;

        assert_true(text && copy);
        memcpy(copy, f->data, f->size);
        for (char *rest = copy, *line; (line = strsep(&rest, "\n"));)
            if (!strstr(line, " = ") && *line)
                strcat(strcat(text, line), "\n");
        err = (pseg_err)PSEG_ERR_INIT;
        if (pseg_tuning_parse(&t, cl, text, strlen(text), &err) != PSEG_OK || t.n == 0)
            fail_msg("kernels/tuned/%s: %s", f->name, err.msg);
        free(text);
        free(copy);
    }
}

static void the_roof_is_the_lower_of_two(void **state)
{
    (void)state;
    assert_true(pseg_attainable(100, 10, 1000, 1) == 100);
    assert_true(pseg_attainable(100, 10, 2, 1) == 20);
    assert_true(pseg_attainable(100, 10, 2, 0) == 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(what_is_cut_is_refused),
        cmocka_unit_test(a_kept_file_is_taken_and_a_damaged_one_told),
        cmocka_unit_test(tuning_measures_what_can_run),
        cmocka_unit_test(the_programs_own_files_are_sound),
        cmocka_unit_test(the_roof_is_the_lower_of_two),
    };
    pseg_device_info *list = NULL;
    size_t n = 0;

    if (pseg_device_list(&list, &n, &err) != PSEG_OK || n == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    pseg_free(list);
    if (!mkdtemp(dir) || !(log_file = tmpfile()))
        return 1;
    cl = open_again();
    tuned = open_in(NULL); /* where other tests have built the kernels */
    if (pseg_stream_open(&s, tuned, &err) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_stream_close(s);
    pseg_cl_close(tuned);
    pseg_cl_close(cl);
    fclose(log_file);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) == 0 ? failed : 1;
}
