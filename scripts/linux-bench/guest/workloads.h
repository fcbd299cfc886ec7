/* The workloads that are measured from user space. */
#ifndef WORKLOADS_H
#define WORKLOADS_H

/* Code whose number of instructions is known. */
void calibrate(void);

void run_user_workloads(void);

#endif
