/* What init prints: lines on the console, as the program that boots it reads them.
 *
 *   R u NAME OPERATIONS BATCHES MIN MEDIAN MAX MEAN    ticks of a whole batch
 *   V NAME VALUE                                       a plain value
 *   FAIL WHAT NUMBER                                   it ends here, by an error
 *   END                                                it is complete
 */
#ifndef PRINT_H
#define PRINT_H

#include "sys.h"

enum { MAX_BATCHES = 256 };

/* Ticks of each batch of what is being measured. */
extern u64 sample[MAX_BATCHES];

/* Sorts the first batches of sample and prints them as a line R. */
void print_batches(const char *name, u64 operations, int batches);

void print_value(const char *name, u64 value);

/* Prints how a system call failed, and ends the machine. */
_Noreturn void fail(const char *what, long result);

/* Prints END, and ends the machine. */
_Noreturn void finish(void);

#endif
