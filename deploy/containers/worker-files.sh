# What a worker loads by name at run time, for closure.sh: read by the images' build and by its test.
# Triplet and versions are Debian's of the system that this is read on.

# libvips' module for HEIC; the others read what a worker refuses.
worker_files() { echo /etc/ssl/certs/ca-certificates.crt; ls /usr/lib/*/vips-modules-*/vips-heif.so 2>/dev/null || true; }

# PoCL: the driver that its .icd file names, its headers and built-in functions, and the linker with
# what it is told to link: a kernel is linked like any shared library.
pocl_files() {
    [ -s /etc/OpenCL/vendors/pocl.icd ] || return 1
    driver=$(cat /etc/OpenCL/vendors/pocl.icd)
    case $driver in /*) echo "$driver" ;; *) ls /usr/lib/*/"$driver" ;; esac || return 1
    echo /etc/OpenCL/vendors/pocl.icd /usr/share/pocl /usr/bin/ld
    ls -d /usr/lib/*/pocl 2>/dev/null
    # clang knows the folder of gcc's parts by crtbegin.o.
    for name in crtbegin.o libgcc.a libgcc_s.so; do ls /usr/lib/gcc/*/*/$name | sort -V | tail -n 1; done
    ls /usr/lib/*/libc.so /usr/lib/*/libc_nonshared.a /usr/lib/*/libm.so
    ls /usr/lib/*/libmvec.so.1 2>/dev/null || true # x86_64 and aarch64 alone
}
