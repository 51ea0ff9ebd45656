/* The life of `pseg-decode`, which a worker starts: processes that decode the images of one owner
 * each. */
#ifndef PSEG_DECODE_CHILD_H
#define PSEG_DECODE_CHILD_H

#include <stddef.h>
#include <stdint.h>

/* argv: INPUT_BYTES OUTPUT_BYTES CPU_SECONDS MEMORY_BYTES; descriptors as in wire.h. Returns the
 * exit status. before(data, len) runs in the locked-in process before it decodes: how tests put a
 * fault where the decoder of a format would have one; NULL in programs that are installed. */
int pseg_decode_main(int argc, char **argv, void (*before)(const uint8_t *data, size_t len));

#endif
