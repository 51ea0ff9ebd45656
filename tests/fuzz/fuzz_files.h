/* For targets whose code reads whole files: files that are in memory only, under the folder
 * "/fuzz". What common/base/file.h says of them comes from here, by the linker's --wrap (option
 * IN_MEMORY of pseg_add_fuzz); other paths are real. Beside the system calls this saves, a map is a
 * block of exactly the file's size, so that a sanitizer sees a read behind its end, which the rest
 * of a real map's last page hides. Not for code that opens files by itself: see fuzz_folder.h. */
#ifndef PSEG_FUZZ_FILES_H
#define PSEG_FUZZ_FILES_H

#include <stddef.h>

#define FUZZ_FILES "/fuzz"

/* The file FUZZ_FILES/name is these bytes from now on, or none if data is NULL. Both arguments are
 * borrowed until the next call for this name or fuzz_files_clear; at most 8 files. */
void fuzz_files_set(const char *name, const void *data, size_t size);
void fuzz_files_clear(void);

#endif
