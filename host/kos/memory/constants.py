"""The documented constants, and the other error numbers, as Linux numbers them."""

# Protection of mapped memory.
PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2
PROT_EXEC = 0x4
PROT_RW = PROT_READ | PROT_WRITE
PROT_RWX = PROT_READ | PROT_WRITE | PROT_EXEC

# Kinds of mappings.
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_ANONYMOUS = 0x20
MAP_FIXED = 0x10
MAP_GROWSDOWN = 0x0100
MAP_LOCKED = 0x2000
MAP_POPULATE = 0x8000

# Memory zones.
ZONE_DMA = 0
ZONE_NORMAL = 1
ZONE_HIGHMEM = 2

# Page flags, as the kernel has them.
PG_DIRTY = 1
PG_LOCKED = 2
PG_MAPPED = 4

PAGE_SIZE = 4096
MAX_ORDER = 10

# Errors: functions return them negative.
EPERM = -1
ENOENT = -2
ENXIO = -6
E2BIG = -7
EBADF = -9
EAGAIN = -11
ENOMEM = -12
EACCES = -13
EFAULT = -14
EBUSY = -16
EEXIST = -17
ENODEV = -19
EINVAL = -22
ENFILE = -23
ENOSPC = -28
ERANGE = -34
ENOSYS = -38
EOVERFLOW = -75
EMSGSIZE = -90

_ERRNO_NAMES = {
    value: name
    for name, value in list(globals().items())
    if name.startswith("E") and isinstance(value, int)
}


def errno_name(errno: int) -> str:
    """The name of an error number.

    Example:
        >>> errno_name(-22), errno_name(-999)
        ('EINVAL', 'error -999')
    """
    return _ERRNO_NAMES.get(errno, f"error {errno}")
