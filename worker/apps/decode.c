/* pseg-decode: decodes images for pseg-worker, each in a process that is locked in. Wiring only. */
#include "worker/decode/child.h"

int main(int argc, char **argv)
{
    return pseg_decode_main(argc, argv, NULL);
}
