/* Error numbers as Linux numbers them. Functions return them negated. */
#pragma once

#define EPERM     1
#define ENOENT    2
#define ENXIO     6
#define E2BIG     7
#define EBADF     9
#define EAGAIN    11
#define ENOMEM    12
#define EACCES    13
#define EFAULT    14
#define EBUSY     16
#define EEXIST    17
#define ENODEV    19
#define EINVAL    22
#define ENFILE    23
#define ENOSPC    28
#define ERANGE    34
#define ENOSYS    38
#define EOVERFLOW 75
#define EMSGSIZE  90
