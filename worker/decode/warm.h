/* What a decoder does once, done before the processes that see images are made: the libraries find
 * and resolve what they need at the first picture, and a forked process has it then.
 *
 * It decodes two pictures of the program's own, 8 pixels wide. Nothing foreign is touched, and no
 * thread is left behind, so that forking is safe. Call it after pseg_image_init, with one thread.
 * What cannot be decoded on this installation is left cold: there is nothing to be gained by it. */
#ifndef PSEG_DECODE_WARM_H
#define PSEG_DECODE_WARM_H

void pseg_decode_warm(void);

#endif
