#!/bin/sh
# Compiles every kernel with clang, in both variants and with the build options the operations use.
# Usage: syntax.sh KERNEL_DIR. Exit 77: there is no clang.
cd "$1" || exit 1
command -v clang >/dev/null 2>&1 || { echo "skipped: no clang"; exit 77; }
rc=0
n=0
for file in *.cl; do
    for options in "-DPSEG_CPU=0" "-DPSEG_CPU=1" "-DPSEG_CPU=1 -DMR=1 -DNV=1 -DQV=1 -DDMAX=64 -DGV=8" "-DPSEG_CPU=1 -DGV=4" \
        "-DPSEG_CPU=0 -DSPLIT" "-DPSEG_CPU=1 -DSPLIT" "-DPSEG_CPU=0 -DPARTS" "-DPSEG_CPU=1 -DPARTS" "-DPSEG_CPU=1 -DPARTS -DAMX -DIN_BF16 -DOUT_BF16" \
        "-DPSEG_CPU=0 -DBF16 -DIN_BF16 -DOUT_BF16" "-DPSEG_CPU=1 -DBF16 -DIN_BF16 -DOUT_BF16" \
        "-DPSEG_CPU=1 -DBF16 -DIN_BF16 -DOUT_BF16 -DDOT" "-DPSEG_CPU=1 -DBF16 -DIN_BF16 -DOUT_BF16 -DAMX"; do
        case $options in # inline assembly is x86-64's
            *DOT* | *AMX*) [ "$(uname -m)" = x86_64 ] || continue; options="$options -mavx512f" ;;
        esac
        # The options are several words on purpose.
        # shellcheck disable=SC2086
        clang -fsyntax-only -x cl -cl-std=CL1.2 -Wall -Wextra -Werror -Wno-unused-function \
            -Wno-unused-parameter -Xclang -finclude-default-header $options \
            -include params.h -include common.clh "$file" || rc=1
        n=$((n + 1))
    done
done
echo "$n compilations"
[ "$n" -ge 15 ] || rc=1
exit $rc
