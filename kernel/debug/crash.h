/* Breaking the kernel on purpose, to show and test what happens then. */
#pragma once

/* Does not come back when the kind is known; -EINVAL otherwise. */
int crash_now(const char *kind);
/* The kinds, separated by spaces. */
extern const char crash_kinds[];
